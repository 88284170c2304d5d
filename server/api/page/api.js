/** The calls that this page makes; every failure is one type of error. */

/** The server refused (`status`), one variant failed in a stream (`ref`), or the connection broke (neither). */
export class ServerError extends Error {
  constructor(message, { status = 0, ref = null, retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.ref = ref;
    this.retryAfterS = retryAfterS;
  }

  get lostConnection() {
    return this.status === 0 && this.ref === null;
  }

  /** A key is missing, unknown, or for something else. */
  get keyWanted() {
    return this.status === 401 || this.status === 403;
  }
}

/** A key that lives as long as the tab: sessionStorage is neither shared nor kept. */
class TabKey {
  #name;
  #value = "";

  constructor(name) {
    this.#name = name;
    try {
      this.#value = sessionStorage.getItem(name) ?? "";
    } catch {
      // Storage is switched off: the key lives as long as the page.
    }
  }

  get value() {
    return this.#value;
  }

  set value(key) {
    this.#value = key;
    try {
      if (key) sessionStorage.setItem(this.#name, key);
      else sessionStorage.removeItem(this.#name);
    } catch {
      // As above.
    }
  }
}

/** The server that this page came from. Its calls throw ServerError, or AbortError if they were aborted. */
export class Server {
  key = new TabKey("nash-key"); // for everything, where the server has keys
  adminKey = new TabKey("nash-admin-key"); // for changing the traffic

  /** Every variant that the server has, in its order. */
  models() {
    return this.#json("models");
  }

  /** What is known of one variant. */
  card(ref) {
    return this.#json(`models/${encodeURIComponent(ref)}`);
  }

  /** What every variant is doing now. */
  stats() {
    return this.#json("stats");
  }

  traffic(model) {
    return this.#json(`models/${encodeURIComponent(model)}/traffic`);
  }

  setTraffic(model, plan) {
    const path = `models/${encodeURIComponent(model)}/traffic`;
    return this.#json(path, { method: "PUT", body: plan }, this.adminKey.value || this.key.value);
  }

  /** Run one text on several variants and return the whole comparison. */
  compare(body, signal) {
    return this.#json("compare", { method: "POST", body, signal });
  }

  /** The same, yielding the events of the stream as they arrive. */
  async *compareLive(body, signal) {
    const response = await this.#request("compare", { method: "POST", body: { ...body, stream: true }, signal });
    yield* streamedEvents(response.body);
  }

  async #json(path, options, key) {
    const response = await this.#request(path, options, key);
    return response.json().catch((error) => {
      throw readable(error);
    });
  }

  async #request(path, { body, ...options } = {}, key = this.key.value) {
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { ...options, headers, body: body && JSON.stringify(body), cache: "no-store" });
    } catch (error) {
      throw readable(error);
    }
    if (response.ok) return response;
    const refusal = await response.json().catch(() => ({}));
    const retryAfter = Number.parseFloat(response.headers.get("retry-after"));
    throw new ServerError(refusal.error ?? `The server answered ${response.status}.`, {
      status: response.status,
      retryAfterS: Number.isFinite(retryAfter) ? retryAfter : null,
    });
  }
}

/** The data of server-sent events, parsed. */
async function* streamedEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (pending + value).replaceAll("\r\n", "\n").split("\n\n");
      pending = blocks.pop();
      for (const block of blocks) {
        const data = eventData(block);
        if (data) yield JSON.parse(data);
      }
    }
  } catch (error) {
    throw readable(error);
  } finally {
    reader.cancel().catch(() => {}); // already closed if the stream ended by itself
  }
}

/** The data lines of one server-sent event; empty for a comment, which keeps the connection alive. */
function eventData(block) {
  return block
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");
}

function readable(error) {
  if (error.name === "AbortError" || error instanceof ServerError) return error;
  return new ServerError("The connection to the server was lost.");
}
