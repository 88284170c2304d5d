/** How a program calls one variant. */

/** The base URL of a variant, for clients that cannot name a model. */
export function baseUrl(ref) {
  return new URL(`models/${ref}`, document.baseURI).href;
}

/** [{title, code}] for a variant; `keyed`: whether the server asks for a key. */
export function snippetsOf(ref, keyed) {
  const root = new URL(".", document.baseURI).href;
  const header = keyed ? ` \\\n    -H "Authorization: Bearer $KEY"` : "";
  const token = keyed ? ', token=os.environ["KEY"]' : "";
  const imports = keyed ? "import os\n\n" : "";
  const apiKey = keyed ? 'os.environ["KEY"]' : '"none"';
  return [
    { title: "curl", code: `curl -s ${root}generate${header} \\\n    -H 'Content-Type: application/json' \\\n    -d '{"inputs": "TEXT", "model": "${ref}"}'` },
    { title: "huggingface_hub", code: `${imports}from huggingface_hub import InferenceClient\n\nclient = InferenceClient(base_url="${baseUrl(ref)}"${token})\nprint(client.text_generation("TEXT"))` },
    { title: "openai", code: `${imports}from openai import OpenAI\n\nclient = OpenAI(base_url="${root}v1", api_key=${apiKey})\nprint(client.completions.create(model="${ref}", prompt="TEXT").choices[0].text)` },
  ];
}
