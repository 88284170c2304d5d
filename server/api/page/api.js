/** The few calls that this page makes, and their failures as one kind of error. */

/** The server said no, or could not be reached (`status` 0). */
export class ServerError extends Error {
  constructor(message, { status = 0, type = "connection", retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.type = type;
    this.retryAfterS = retryAfterS;
  }
}

/** Every variant that the server has, in its order. */
export async function fetchModels(signal) {
  const response = await request("models", { signal });
  return response.json();
}

/**
 * Run one text on several variants and yield the events of the stream as they arrive.
 * Throws ServerError; one without a status means that the connection broke.
 */
export async function* compare(body, signal) {
  const response = await request("compare", {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
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
    reader.cancel().catch(() => {}); // it is closed already where the stream ended by itself
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

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw readable(error);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const retryAfter = Number.parseFloat(response.headers.get("retry-after"));
  throw new ServerError(body.error ?? `The server answered ${response.status}.`, {
    status: response.status,
    type: body.error_type ?? "unknown",
    retryAfterS: Number.isFinite(retryAfter) ? retryAfter : null,
  });
}

function readable(error) {
  if (error.name === "AbortError" || error instanceof ServerError) return error;
  return new ServerError("The connection to the server was lost.");
}
