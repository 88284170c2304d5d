"""The offline side: fine-tune, prune and evaluate encoder-decoder models.

After `import nash`, transformers' Auto classes load pruned models like any other model.
"""

import sys
from pathlib import Path

# torch and transformers take seconds to import, and most commands of the `nash` script need neither. The commands that
# do import the model themselves.
if not sys.argv or Path(sys.argv[0]).stem != "nash":
    import nash.modeling.compact  # noqa: F401 - importing it registers it
