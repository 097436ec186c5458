// Volumes, networks, images, users: the same page from a description of each kind.
import {at, call} from '../api.js';
import {may} from '../app.js';
import {list, load, watch} from '../state.js';
import {button, bytes, complain, confirm, dialog, el, empty, fill, form, heading, run, when} from '../ui.js';

const name = {name: 'name', label: 'Name', required: true, hint: 'a letter or digit, then up to 62 letters, digits, "-", "_" and "."'};
const description = {name: 'description', label: 'Description'};
const KINDS = {
  volumes: {
    title: 'Volumes', one: 'volume', role: 'operator', about: 'Disks that outlive the instances that use them.',
    columns: [['Size', (v) => bytes(v.size), true], ['Format', (v) => v.format], ['Used by', (v) => users(v.name, 'volumes')], ['Owner', (v) => v.owner], ['Created', (v) => when(v.created_at)]],
    fields: [name, {name: 'size', label: 'Size', required: true, hint: 'such as 10G'}, {name: 'format', label: 'Format', options: ['raw', 'qcow2'], value: 'raw', hint: ''}, description],
  },
  networks: {
    title: 'Networks', one: 'network', role: 'admin', about: 'What instances are attached to. The network "user" is always there: NAT, in the instance\'s own process.',
    columns: [['Mode', (n) => n.mode], ['Options', (n) => n.options || ''], ['Used by', (n) => users(n.name, 'networks')], ['Created', (n) => when(n.created_at)]],
    fields: [name, {name: 'mode', label: 'Mode', options: ['user', 'tap', 'wire'], value: 'user', hint: 'user: NAT; tap, wire: as "fonda run --net" takes them'},
      {name: 'options', label: 'Options', hint: 'such as mtu=1500'}, description],
  },
  images: {
    title: 'Images', one: 'image', role: 'admin', about: 'Files of the host that instances start from.',
    columns: [['Kind', (i) => i.kind], ['Size', (i) => bytes(i.size), true], ['File', (i) => i.path], ['Registered', (i) => when(i.created_at)]],
    fields: [name, {name: 'kind', label: 'Kind', options: ['disk', 'kernel', 'initrd', 'iso'], value: 'disk', hint: 'what is in it'},
      {name: 'path', label: 'File', required: true, hint: 'an absolute path on the daemon\'s host'}, description],
  },
  users: {
    title: 'Users', one: 'user', role: 'admin', about: 'Who may use this daemon. viewer reads, operator also works with instances and volumes, admin everything.',
    columns: [['Role', (u) => u.role], ['Token', (u) => u.has_token ? 'yes' : 'none'], ['Grants', (u) => Object.entries(u.grants || {}).map(([k, v]) => `${k}: ${v}`).join(', ')], ['Created', (u) => when(u.created_at)]],
    fields: [name, {name: 'role', label: 'Role', options: ['viewer', 'operator', 'admin', 'none'], value: 'viewer', hint: 'on everything'}, description],
    actions: (user) => [button('New token', (event) => newToken(user, event.target), {'aria-label': `New token for ${user.name}`})],
  },
};

const users = (value, member) => list('instances').filter((i) => (i[member] || []).includes(value)).map((i) => i.name).join(', ');

async function newToken(user, target) {
  if (user.has_token && !await confirm(`A new token for ${user.name}?`, 'The old one stops working at once.', 'Make a new token')) return;
  const made = await run(target, () => call('POST', at('users', user.name, '/token')));
  if (!made) return;
  const field = el('input', {type: 'text', readonly: true, value: made.token, 'aria-label': 'The token', class: 'token'});
  const box = dialog(`Token of ${user.name}`, el('div', {}, el('p', {}, 'It is shown this once. Give it to nobody else.'), field),
    button('Copy', () => navigator.clipboard ? navigator.clipboard.writeText(made.token) : field.select()), button('Done', () => box.close(), {class: 'primary'}));
  field.select();
}

export function objects(kind) {
  const about = KINDS[kind];
  const place = el('div', {});
  const change = may(about.role);
  const draw = () => {
    const items = list(kind).sort((a, b) => a.name.localeCompare(b.name, undefined, {numeric: true}));
    const titles = ['Name', ...about.columns.map((c) => c[0]), ...change ? ['Actions'] : []];
    fill(place, items.length ? el('div', {class: 'wide'}, el('table', {class: 'list'}, el('thead', {}, el('tr', {}, titles.map((t, i) => el('th', {scope: 'col', class: about.columns[i - 1]?.[2] ? 'number' : ''}, t)))),
      el('tbody', {}, items.map((item) => el('tr', {}, el('th', {scope: 'row'}, item.name, item.description ? el('p', {class: 'hint'}, item.description) : null),
        about.columns.map(([, value, number]) => el('td', {class: number ? 'number' : ''}, value(item))),
        change ? el('td', {class: 'row-actions'}, about.actions ? about.actions(item) : null, button('Delete', async (event) => {
          if (await confirm(`Delete the ${about.one} ${item.name}?`, kind === 'volumes' ? 'What is on it is gone for good.' : 'This can\'t be undone.', 'Delete')) {
            run(event.target, () => call('DELETE', at(kind, item.name)));
          }
        }, {class: 'danger quiet', 'aria-label': `Delete ${item.name}`})) : null))))) : empty(`No ${kind} yet.`));
  };
  const add = () => {
    const box = dialog(`New ${about.one}`, form(about.fields, 'Create', async (values) => { await call('POST', `/v1/${kind}`, values); box.close(); }), button('Cancel', () => box.close()));
  };
  const unwatch = [watch(kind, draw), watch('instances', draw)];
  load(kind).then(draw).catch((problem) => { fill(place, empty(problem.message)); if (problem.status !== 403) complain(problem); });
  load('instances').catch(() => {});
  return {title: about.title, node: el('div', {}, heading(about.title, change ? button(`New ${about.one}`, add, {class: 'primary'}) : null), el('p', {class: 'lead'}, about.about), place),
    close: () => unwatch.forEach((fn) => fn())};
}
