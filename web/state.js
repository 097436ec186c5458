// What the daemon has, as this page knows it: lists that are read once and then follow the events' web socket. After a lost
// connection everything is read again. Nothing polls.
import {at, call, socket} from './api.js';

const KINDS = ['instances', 'jobs', 'volumes', 'networks', 'images', 'templates', 'backups', 'schedules', 'users'];
const EVENTS_KEPT = 500;
const SINGLY_MAX = 12;
const lists = {};   // kind -> Map of objects by name, once somebody asked
const watchers = new Map(); // kind -> Set of functions
export const events = [];
export const connection = {up: false, tries: 0, again_ms: 0};
let ws = null, timer = 0, wanted = false;

// Watchers are told once for all that changed before the next frame (a page in the background has no frames).
const told = new Set();
function tell(kind) {
  serials.set(kind, serial(kind) + 1);
  if (told.has(kind)) return;
  told.add(kind);
  const now = () => {
    if (!told.delete(kind)) return;
    for (const fn of [...watchers.get(kind) || []]) fn();
  };
  if (document.hidden) setTimeout(now);
  else requestAnimationFrame(now);
}

// Grows with each change of a list.
const serials = new Map();
export const serial = (kind) => serials.get(kind) || 0;

export function watch(kind, fn) {
  if (!watchers.has(kind)) watchers.set(kind, new Set());
  watchers.get(kind).add(fn);
  return () => watchers.get(kind).delete(fn);
}

// Reads a list. What events name while the answer is under way is read once more: the answer may be older than they.
const reading = new Map(); // kind -> {done, missed}
function read(kind) {
  if (reading.has(kind)) return reading.get(kind).done;
  const missed = new Set();
  const done = (async () => {
    try {
      const answer = await call('GET', `/v1/${kind}?${kind === 'jobs' ? 'sort=-number&limit=200' : 'limit=10000'}`);
      if (wanted) lists[kind] = new Map(answer.items.map((item) => [item.name, item]));
    } finally {
      reading.delete(kind);
    }
    tell(kind);
    for (const name of missed) soon(kind, name);
  })();
  reading.set(kind, {done, missed});
  return done;
}

// The list, read if it is not there yet; empty where this caller may not see it.
export async function load(kind) {
  if (!lists[kind]) await read(kind);
  return lists[kind] || new Map();
}

export const reload = (kind) => lists[kind] ? read(kind).catch(() => {}) : undefined;
export const list = (kind) => [...(lists[kind] || new Map()).values()];
export const known = (kind) => kind in lists;
export const get = (kind, name) => lists[kind] && lists[kind].get(name);

async function refresh(kind, name) {
  if (!lists[kind]) return;
  try {
    lists[kind].set(name, await call('GET', at(kind, name)));
  } catch (problem) {
    if (problem.status !== 404 && problem.status !== 403) return;
    lists[kind].delete(name);
  }
  tell(kind);
}

// What events named is read again, a kind at a time: a few objects each by itself, many with the whole list. Events that
// come meanwhile wait for the next round, so a storm of them is a request or two.
const pending = new Map(); // kind -> Set of names, while a round goes on
async function soon(kind, name) {
  if (reading.has(kind)) { reading.get(kind).missed.add(name); return; }
  if (!lists[kind]) return;
  if (pending.has(kind)) {
    pending.get(kind).add(name);
    return;
  }
  pending.set(kind, new Set([name]));
  while (pending.get(kind).size) {
    const names = [...pending.get(kind)];
    pending.get(kind).clear();
    if (names.length > SINGLY_MAX) await read(kind).catch(() => {});
    else await Promise.all(names.map((one) => refresh(kind, one)));
  }
  pending.delete(kind);
}

// Follows a job to its end; fn(job) at each change. Returns the job as it ended.
export async function follow(name, fn) {
  await load('jobs');
  if (!get('jobs', name)) await refresh('jobs', name);
  return new Promise((done) => {
    const look = () => {
      const job = get('jobs', name);
      if (!job) return;
      fn(job);
      if (job.state === 'queued' || job.state === 'running') return;
      unwatch();
      done(job);
    };
    const unwatch = watch('jobs', look);
    look();
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
  if (kind === 'jobs' && event.data && event.data.target) { // a job that was canceled or failed may have left its target in another state
    const [of, one] = event.data.target.split('/');
    if (KINDS.includes(of)) soon(of, one);
  }
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
