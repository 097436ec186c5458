// The page's frame: sign-in, navigation, and which part is shown (the address's fragment says).
import {call, signedOut, token} from './api.js';
import {connect, connection, disconnect, list, watch} from './state.js';
import {button, el, fill, link} from './ui.js';
import {signin} from './pages/signin.js';
import {instances} from './pages/instances.js';
import {instance} from './pages/instance.js';
import {create} from './pages/create.js';
import {objects} from './pages/objects.js';
import {jobs} from './pages/jobs.js';
import {events} from './pages/events.js';
import {host} from './pages/host.js';

export const me = {name: '', role: 'none'};
const RANK = {none: 0, viewer: 1, operator: 2, admin: 3};
export const may = (role) => RANK[me.role] >= RANK[role];

// Each page is a function of the address's parts; it returns {title, node, close?}.
const PAGES = {
  instances: (name, tab) => name ? instance(name, tab) : instances(),
  create: (kind) => create(kind),
  volumes: () => objects('volumes'),
  networks: () => objects('networks'),
  images: () => objects('images'),
  templates: () => objects('templates'),
  backups: () => objects('backups'),
  schedules: () => objects('schedules'),
  users: () => objects('users'),
  jobs: (name) => jobs(name),
  events: () => events(),
  host: () => host(),
};
const NAV = [['instances', 'Instances'], ['volumes', 'Volumes'], ['networks', 'Networks'], ['images', 'Images'],
  ['templates', 'Templates'], ['backups', 'Backups'], ['schedules', 'Schedules'], ['jobs', 'Jobs'],
  ['events', 'Events'], ['users', 'Users', 'admin'], ['host', 'Host']];

const app = document.getElementById('app');
const main = el('main', {id: 'main', tabindex: '-1'});
let shown = null, frame = null;

function banner() {
  const box = el('div', {class: 'banner', role: 'alert', hidden: true});
  const since = {lost: false};
  watch('connection', () => {
    if (connection.up) {
      box.hidden = true;
      since.lost = false;
    } else {
      if (!since.lost) fill(box, el('strong', {}, 'Connection lost.'), ' What you see may be old; trying again.');
      since.lost = true;
      box.hidden = false;
    }
    document.body.classList.toggle('offline', !connection.up);
  });
  return box;
}

function makeFrame() {
  const items = NAV.filter(([, , role]) => !role || may(role)).map(([page, label]) => {
    const badge = el('span', {class: 'count', 'aria-hidden': 'true'});
    if (page === 'jobs') {
      watch('jobs', () => {
        const open = list('jobs').filter((job) => job.state === 'queued' || job.state === 'running').length;
        badge.textContent = open ? String(open) : '';
      });
    }
    return el('li', {}, el('a', {href: `#/${page}`, 'data-page': page}, label, badge));
  });
  const nav = el('nav', {id: 'nav', 'aria-label': 'Main'}, el('ul', {}, items));
  const menu = button('Menu', () => {
    const open = document.body.classList.toggle('menu-open');
    menu.setAttribute('aria-expanded', String(open));
  }, {class: 'menu quiet', 'aria-expanded': 'false', 'aria-controls': 'nav'});
  const state = el('span', {class: 'live', role: 'status'});
  const tell = () => { state.textContent = connection.up ? 'live' : 'not connected'; state.classList.toggle('up', connection.up); };
  watch('connection', tell);
  tell();
  return el('div', {class: 'frame'},
    el('header', {class: 'side'},
      el('div', {class: 'brand'}, link('#/instances', el('img', {src: '/icon.svg', alt: '', width: 28, height: 28}), 'Fonda'), menu),
      nav,
      el('div', {class: 'who'}, state, el('span', {class: 'name'}, me.name), el('span', {class: 'hint'}, me.role), button('Sign out', signOut, {class: 'quiet'}))),
    el('div', {class: 'body'}, banner(), main));
}

async function signOut() {
  await call('DELETE', '/v1/session').catch(() => {});
  leave();
}

function leave(why) {
  token.set('');
  disconnect();
  if (shown && shown.close) shown.close();
  shown = frame = null;
  document.title = 'Sign in – Fonda';
  fill(app, signin(enter, why));
}

async function enter() {
  Object.assign(me, await call('GET', '/v1/whoami'));
  connect();
  frame = makeFrame();
  fill(app, frame);
  show(true);
}

function show(first) {
  const [page = '', ...rest] = location.hash.replace(/^#\/?/, '').split('/').map((part) => { try { return decodeURIComponent(part); } catch { return ''; } });
  if (page === 'signin') { start(); return; }
  if (!frame) return;
  if (shown && shown.close) shown.close();
  shown = (Object.hasOwn(PAGES, page) ? PAGES[page] : PAGES.instances)(...rest.filter(Boolean));
  document.title = `${shown.title} – Fonda`;
  fill(main, shown.node);
  for (const a of frame.querySelectorAll('#nav a')) {
    if (a.dataset.page === (page || 'instances') || (page === 'create' && a.dataset.page === 'instances')) a.setAttribute('aria-current', 'page');
    else a.removeAttribute('aria-current');
  }
  document.body.classList.remove('menu-open');
  if (!first) {
    const title = main.querySelector('h1');
    if (title && !main.contains(document.activeElement)) title.focus({preventScroll: true});
    scrollTo(0, 0);
  }
}

// A one-time link signs in and leaves the address; else whoever has a token goes on.
async function start() {
  const code = location.hash.match(/^#\/signin\/([0-9a-zA-Z]+)$/);
  if (code) {
    history.replaceState(null, '', '#/instances');
    try {
      token.set('');
      token.set((await call('POST', '/v1/session', {code: code[1]})).token);
    } catch (problem) {
      leave(problem.message + (problem.hint ? ` (${problem.hint})` : ''));
      return;
    }
  }
  if (!token.get()) { leave(); return; }
  try {
    await enter();
  } catch (problem) {
    leave(problem.status === 401 ? 'The session has ended.' : problem.message);
  }
}

signedOut.addEventListener('out', () => frame && leave('The session has ended. Sign in again.'));
addEventListener('hashchange', () => show(false));
addEventListener('keydown', (event) => {
  if (event.key !== '/' || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const filter = main.querySelector('input[type=search]');
  if (filter) { event.preventDefault(); filter.focus(); }
});
start();
