// What the daemon has, as this page knows it: lists that are read once and then follow the events' web socket. After a lost
// connection everything is read again. Nothing polls.
import {at, call, socket} from './api.js';

const KINDS = ['instances', 'jobs', 'volumes', 'networks', 'images', 'users'];
const EVENTS_KEPT = 500;
const lists = {};   // kind -> Map of objects by name, once somebody asked
const watchers = new Map(); // kind -> Set of functions
export const events = [];
export const connection = {up: false, tries: 0, again_ms: 0};
let ws = null, timer = 0, wanted = false;

function tell(kind) {
  for (const fn of [...watchers.get(kind) || []]) fn();
}

export function watch(kind, fn) {
  if (!watchers.has(kind)) watchers.set(kind, new Set());
  watchers.get(kind).add(fn);
  return () => watchers.get(kind).delete(fn);
}

async function read(kind) {
  const order = kind === 'jobs' ? 'sort=-number&limit=200' : 'limit=10000';
  const answer = await call('GET', `/v1/${kind}?${order}`);
  lists[kind] = new Map(answer.items.map((item) => [item.name, item]));
  tell(kind);
}

// The list, read if it is not there yet; empty where this caller may not see it.
export async function load(kind) {
  if (!lists[kind]) await read(kind);
  return lists[kind];
}

export const list = (kind) => [...(lists[kind] || new Map()).values()];
export const known = (kind) => kind in lists;
export const get = (kind, name) => lists[kind] && lists[kind].get(name);

export async function refresh(kind, name) {
  if (!lists[kind]) return;
  try {
    lists[kind].set(name, await call('GET', at(kind, name)));
  } catch (problem) {
    if (problem.status !== 404 && problem.status !== 403) return;
    lists[kind].delete(name);
  }
  tell(kind);
}

// Many events of one object are one request: the first starts it, those that come meanwhile start one more.
const busy = new Map();
function soon(kind, name) {
  const key = `${kind}/${name}`;
  if (busy.has(key)) {
    busy.set(key, true);
    return;
  }
  busy.set(key, false);
  refresh(kind, name).finally(() => {
    const again = busy.get(key);
    busy.delete(key);
    if (again) soon(kind, name);
  });
}

function happened(event) {
  if (event.type === 'overflow') return;
  if (event.type === 'job.progress') {
    if (lists.jobs) {
      lists.jobs.set(event.data.name, event.data);
      tell('jobs');
    }
    return;
  }
  events.unshift(event);
  events.length = Math.min(events.length, EVENTS_KEPT);
  const [kind, name] = event.subject.split('/');
  if (event.type === 'instance.renamed' && event.data && event.data.from && lists.instances) lists.instances.delete(event.data.from);
  if (KINDS.includes(kind)) soon(kind, name);
  tell('events');
}

function changed(up) {
  connection.up = up;
  tell('connection');
}

function lost() {
  ws = null;
  if (!wanted) return;
  connection.tries++;
  connection.again_ms = Math.min(500 * 2 ** Math.min(connection.tries - 1, 4), 5000);
  changed(false);
  clearTimeout(timer);
  timer = setTimeout(connect, connection.again_ms);
}

export function connect() {
  clearTimeout(timer);
  wanted = true;
  if (ws) return;
  const mine = ws = socket('/v1/events/stream?jobs=1');
  mine.onopen = async () => {
    connection.tries = 0;
    changed(true);
    await Promise.allSettled(Object.keys(lists).map(read));
    tell('reconnected');
  };
  mine.onmessage = (message) => happened(JSON.parse(message.data));
  mine.onclose = async () => {
    if (ws !== mine) return;
    if (connection.tries === 0 || connection.tries % 4 === 0) await call('GET', '/v1/whoami').catch(() => {}); // a 401 signs out
    if (ws === mine) lost();
  };
}

export function disconnect() {
  wanted = false;
  clearTimeout(timer);
  const old = ws;
  ws = null;
  if (old) old.close();
  for (const kind of Object.keys(lists)) delete lists[kind];
  events.length = 0;
}

addEventListener('online', () => wanted && !ws && connect());
