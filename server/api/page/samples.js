/** Example texts by family, of the models that the examples make; other families have none. */
const SAMPLES = new Map([
  ["g2p", [
    "mississippi", "rendezvous", "colonel", "onomatopoeia", "chrysanthemum", "thoroughbred", "xylophone",
    "entrepreneur", "pneumonia", "bourgeois", "quixotic", "rhododendron", "silhouette", "hippopotamus",
    "archaeology", "zucchini", "lieutenant", "phosphorescent", "croissant", "worcestershire", "kaleidoscope",
    "mnemonic", "squirrel", "acquiesce", "boulevard", "czar", "dachshund", "enough", "fuchsia", "gnocchi",
    "hyperbole", "isthmus", "jalapeno", "knowledge", "labyrinth", "metamorphosis", "nausea", "ophthalmology",
    "psychology", "queue", "reservoir", "subpoena", "tsunami", "ukulele", "vacuum", "yacht",
  ]],
  ["multi30k-de", [
    "Two children are playing with a red ball in the park.",
    "A man in a blue shirt is standing on a ladder and cleaning a window.",
    "Three women are sitting at a table and drinking coffee.",
    "A brown dog is running through the snow.",
  ]],
]);

export function samplesOf(family) {
  return SAMPLES.get(family) ?? [];
}
