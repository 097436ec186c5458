// The API: requests, web sockets, and who is signed in. The token stays in this tab (sessionStorage) and goes out in a
// header that no other page can send, so there is no cookie that a foreign page could borrow.

const KEY = 'fonda-token';

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || `the daemon answered with status ${status}`);
    this.status = status;
    this.code = body.code || 'unknown';
    this.hint = body.hint || '';
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY) || '',
  set: (value) => value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY),
};

export const signedOut = new EventTarget();

async function send(method, path, body, extra) {
  const headers = {...extra};
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let reply;
  try {
    reply = await fetch(path, {method, headers, credentials: 'omit', body: body === undefined ? undefined : JSON.stringify(body)});
  } catch {
    throw new Problem(0, {code: 'no_connection', detail: 'the daemon cannot be reached', hint: 'is fondad running?'});
  }
  if (!reply.ok) {
    const problem = new Problem(reply.status, await reply.json().catch(() => ({})));
    if (reply.status === 401 && path !== '/v1/session') signedOut.dispatchEvent(new Event('out'));
    throw problem;
  }
  return reply;
}

export async function call(method, path, body, extra) {
  const reply = await send(method, path, body, extra);
  return reply.status === 204 ? null : reply.json();
}

export async function text(path) {
  return (await send('GET', path)).text();
}

export const at = (kind, name, more = '') => `/v1/${kind}/${encodeURIComponent(name)}${more}`;

// Browsers send no headers of ours with a web socket; the token goes as an offered protocol.
export function socket(path) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  return new WebSocket(url, ['fonda', `fonda.token.${token.get()}`]);
}
