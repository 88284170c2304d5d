/** The two calls that this page makes; every failure is one type of error. */

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
}

/** The server that this page came from. Its calls throw ServerError, or AbortError if they were aborted. */
export class Server {
  key = ""; // the API key, if the server requires one; never stored

  /** Every variant that the server has, in its order. */
  async models() {
    const response = await this.#request("models", {});
    return response.json();
  }

  /** Run one text on several variants and yield the events of the stream as they arrive. */
  async *compare(body, signal) {
    const response = await this.#request("compare", {
      method: "POST",
      headers: { "content-type": "application/json", accept: "text/event-stream" },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    });
    yield* streamedEvents(response.body);
  }

  async #request(path, options) {
    const authorization = this.key ? { authorization: `Bearer ${this.key}` } : {};
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization } });
    } catch (error) {
      throw readable(error);
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    const retryAfter = Number.parseFloat(response.headers.get("retry-after"));
    throw new ServerError(body.error ?? `The server answered ${response.status}.`, {
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
