"""`nash models`: the commands of the model store."""

import typer

from nash.cli.models import aliases, card, compare, listing, publish, transfer, upkeep

app = typer.Typer(no_args_is_help=True)
app.command("publish")(publish.publish)
app.command("import")(publish.import_model)
app.command("ls")(listing.list_versions)
app.command("show")(listing.show)
app.command("tag")(aliases.tag)
app.command("untag")(aliases.untag)
app.command("rollback")(aliases.rollback)
app.command("history")(aliases.history)
app.command("lineage")(compare.lineage)
app.command("diff")(compare.diff)
app.command("card")(card.card)
app.command("push")(transfer.push)
app.command("pull")(transfer.pull)
app.command("verify")(upkeep.verify)
app.command("rm")(upkeep.remove)
app.command("gc")(upkeep.collect)
