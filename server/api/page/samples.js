/** Example texts by family; families not listed have none. */
const SAMPLES = new Map([
  ["g2p", [
    "mississippi", "rendezvous", "colonel", "onomatopoeia", "chrysanthemum", "thoroughbred", "xylophone",
    "entrepreneur", "pneumonia", "bourgeois", "quixotic", "rhododendron", "silhouette", "hippopotamus",
    "archaeology", "zucchini", "lieutenant", "phosphorescent", "croissant", "worcestershire", "kaleidoscope",
    "mnemonic", "squirrel", "acquiesce", "boulevard", "czar", "dachshund", "enough", "fuchsia", "gnocchi",
    "hyperbole", "isthmus", "jalapeno", "knowledge", "labyrinth", "metamorphosis", "nausea", "ophthalmology",
    "psychology", "queue", "reservoir", "subpoena", "tsunami", "ukulele", "vacuum", "yacht",
  ]],
]);

export function samplesOf(family) {
  return SAMPLES.get(family) ?? [];
}
