// Volumes, networks, images, templates, backups, schedules, users: the same page from a description of each kind.
import {at, call} from '../api.js';
import {may} from '../app.js';
import {list, load, reload, watch} from '../state.js';
import {badge, button, bytes, complain, confirm, dialog, el, empty, fill, form, heading, link, run, say, when} from '../ui.js';
import {jobDialog} from './snapshots.js';

const name = {name: 'name', label: 'Name', required: true, hint: 'a letter or digit, then up to 62 letters, digits, "-", "_" and "."'};
const description = {name: 'description', label: 'Description'};
const KINDS = {
  volumes: {
    title: 'Volumes', one: 'volume', role: 'operator', about: 'Disks that outlive the instances that use them.',
    columns: [['Size', (v) => bytes(v.size), true], ['Format', (v) => v.format], ['Used by', (v) => users(v.name, 'volumes')], ['Owner', (v) => v.owner], ['Created', (v) => when(v.created_at)]],
    fields: [name, {name: 'size', label: 'Size', required: true, hint: 'such as 10G'}, {name: 'format', label: 'Format', options: ['qcow2', 'raw'], value: 'qcow2', hint: 'qcow2 can have snapshots'}, description],
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
  templates: {
    title: 'Templates', one: 'template', role: 'operator', about: 'Machines as they are to be: configuration and disks that nothing changes. Instances made from one begin in a moment.',
    columns: [['From', (t) => t.instance], ['Disks', (t) => String((t.volumes || []).length), true], ['State', (t) => badge(t.state)], ['Used by', (t) => list('instances').filter((i) => i.template === t.name).map((i) => i.name).join(', ')],
      ['Owner', (t) => t.owner], ['Created', (t) => when(t.created_at)]],
    fields: () => [name, {name: 'instance', label: 'From', required: true, options: list('instances').filter((i) => i.kind === 'vm' && i.state === 'stopped').map((i) => i.name), hint: 'a machine that is stopped'}, description],
    actions: (template) => [button('New instance', () => jobDialog(`New instance from ${template.name}`, [name, {name: 'mode', label: 'Disks', options: ['linked', 'full'], value: 'linked',
      hint: 'linked: only what differs from the template\'s; full: copied'}], 'Create', (values) => call('POST', at('templates', template.name, '/use'), values),
    (values) => { location.hash = `#/instances/${encodeURIComponent(values.name)}`; }), {class: 'quiet', 'aria-label': `New instance from ${template.name}`})],
    job: true,
  },
  backups: {
    title: 'Backups', one: 'backup', role: 'operator', about: 'A machine\'s disks and members in a file of their own, with checksums. The machine goes on while it is backed up.',
    columns: [['Of', (b) => b.instance], ['State', (b) => badge(b.state)], ['Size', (b) => bytes(b.size), true], ['Made by', (b) => b.schedule ? `schedule ${b.schedule}` : b.owner],
      ['Verified', (b) => when(b.verified_at)], ['Until', (b) => b.expires_at ? when(b.expires_at) : 'for good'], ['Created', (b) => when(b.created_at)]],
    fields: (of) => [...of ? [] : [{name: 'instance', label: 'Of', required: true, options: machines(), hint: 'a machine, running or stopped'}],
      {...name, required: false, hint: 'made from the machine\'s name and the time if it is empty'}, description, {name: 'keep', label: 'Keep', parse: seconds, hint: 'such as 12h, 7d or 4w; empty: for good'}],
    path: (values, of) => at('instances', of || values.instance, '/backups'), leave: ['instance'],
    actions: (backup) => backup.state === 'ready' ? [
      button('Restore', () => jobDialog(`Restore ${backup.name}`, [{name: 'name', label: 'New instance', hint: `the name of a new one; empty: ${backup.instance} itself, which has to be stopped, becomes what it was`}],
        'Restore', (values) => call('POST', at('backups', backup.name, '/restore'), values)), {class: 'quiet', 'aria-label': `Restore ${backup.name}`}),
      button('Verify', (event) => run(event.target, async () => say(`${(await call('POST', at('backups', backup.name, '/verify'))).name} reads all of it.`)), {class: 'quiet', 'aria-label': `Verify ${backup.name}`})] : null,
    job: true, gone: 'Its file is gone for good.',
  },
  schedules: {
    title: 'Schedules', one: 'schedule', role: 'operator', about: 'Snapshots or backups of an instance at certain times, and how long they are kept.',
    columns: [['Of', (s) => s.instance], ['What', (s) => s.action + (s.memory ? ' with memory' : '')], ['When', (s) => s.cron || (s.every ? `every ${span(s.every)}` : '–')],
      ['Kept', (s) => [s.keep_last && `the last ${s.keep_last}`, s.keep_for && `for ${span(s.keep_for)}`].filter(Boolean).join(', ') || 'for good'],
      ['Next', (s) => s.enabled ? when(s.next_at) : 'it is off'], ['Last', (s) => [s.last_job ? link(`#/jobs/${s.last_job}`, when(s.last_at)) : when(s.last_at), s.last_error ? el('p', {class: 'bad-text'}, s.last_error) : null]]],
    fields: (of) => [name, ...of ? [] : [{name: 'instance', label: 'Of', required: true, options: machines(), hint: 'a machine'}],
      {name: 'action', label: 'What', options: ['snapshot', 'backup'], value: 'snapshot', hint: ''}, {name: 'memory', label: 'Snapshots with memory, if it runs', type: 'checkbox'},
      {name: 'cron', label: 'When', hint: 'minute, hour, day of the month, month, day of the week: "30 3 * * 1-5" is at 3:30 on weekdays'},
      {name: 'every', label: 'Or every', parse: seconds, hint: 'such as 30m, 6h or 1d, instead of certain times'},
      {name: 'keep_last', label: 'Keep the last', parse: (v) => /^\d+$/.test(v) ? Number(v) : v, hint: 'so many; older ones are deleted'},
      {name: 'keep_for', label: 'Keep for', parse: seconds, hint: 'such as 7d or 4w'}, description],
    extra: (of) => of ? {instance: of} : {},
    actions: (schedule) => [button(schedule.enabled ? 'Turn off' : 'Turn on', (event) => run(event.target, () => call('PATCH', at('schedules', schedule.name), {enabled: !schedule.enabled})),
      {class: 'quiet', 'aria-label': `Turn ${schedule.enabled ? 'off' : 'on'} ${schedule.name}`})],
    gone: 'What it made stays.',
  },
  users: {
    title: 'Users', one: 'user', role: 'admin', about: 'Who may use this daemon. viewer reads, operator also works with instances and volumes, admin everything.',
    columns: [['Role', (u) => u.role], ['Token', (u) => u.has_token ? 'yes' : 'none'], ['Grants', (u) => Object.entries(u.grants || {}).map(([k, v]) => `${k}: ${v}`).join(', ')], ['Created', (u) => when(u.created_at)]],
    fields: [name, {name: 'role', label: 'Role', options: ['viewer', 'operator', 'admin', 'none'], value: 'viewer', hint: 'on everything'}, description],
    actions: (user) => [button('New token', (event) => newToken(user, event.target), {'aria-label': `New token for ${user.name}`})],
  },
};

const machines = () => list('instances').filter((i) => i.kind === 'vm').map((i) => i.name);
const UNITS = {s: 1, m: 60, h: 3600, d: 86400, w: 604800};
const seconds = (text) => { const [, n, unit] = text.match(/^(\d+)\s*([smhdw]?)$/) || []; return n === undefined ? text : Number(n) * (UNITS[unit] || 1); };
const span = (s) => { const unit = ['w', 'd', 'h', 'm'].find((u) => s % UNITS[u] === 0); return unit ? `${s / UNITS[unit]} ${{w: 'weeks', d: 'days', h: 'hours', m: 'minutes'}[unit]}` : `${s} seconds`; };
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

// The table of a kind's objects; with `of`, of those of one instance.
export function objectTable(kind, of) {
  const about = KINDS[kind], change = may(about.role);
  const items = list(kind).filter((item) => !of || item.instance === of).sort((a, b) => a.name.localeCompare(b.name, undefined, {numeric: true}));
  const columns = about.columns.filter(([title]) => !of || title !== 'Of');
  const titles = ['Name', ...columns.map((c) => c[0]), ...change ? ['Actions'] : []];
  const remove = async (event, item) => {
    if (await confirm(`Delete the ${about.one} ${item.name}?`, about.gone || (kind === 'volumes' ? 'What is on it is gone for good.' : 'This can\'t be undone.'), 'Delete')) {
      run(event.target, () => call('DELETE', at(kind, item.name)));
    }
  };
  return items.length ? el('div', {class: 'wide'}, el('table', {class: 'list cards'}, el('thead', {}, el('tr', {}, titles.map((t, i) => el('th', {scope: 'col', class: columns[i - 1]?.[2] ? 'number' : ''}, t)))),
    el('tbody', {}, items.map((item) => el('tr', {}, el('th', {scope: 'row'}, item.name, item.description ? el('p', {class: 'hint'}, item.description) : null),
      columns.map(([title, value, number]) => el('td', {class: number ? 'number' : '', 'data-label': title}, value(item))),
      change ? el('td', {class: 'row-actions'}, about.actions ? about.actions(item) : null, button('Delete', (event) => remove(event, item),
        {class: 'danger quiet', 'aria-label': `Delete ${item.name}`})) : null))))) : empty(`No ${kind} yet.`);
}

// The dialog that makes one; with `of`, one of that instance.
export function addObject(kind, of) {
  const about = KINDS[kind];
  const fields = typeof about.fields === 'function' ? about.fields(of) : about.fields;
  const send = (values) => {
    const path = about.path ? about.path(values, of) : `/v1/${kind}`;
    const body = {...values, ...about.extra ? about.extra(of) : {}};
    for (const left of about.leave || []) delete body[left];
    return call('POST', path, body);
  };
  if (about.job) { jobDialog(`New ${about.one}`, fields, 'Create', send); return; }
  const box = dialog(`New ${about.one}`, form(fields, 'Create', async (values) => { await send(values); box.close(); }), button('Cancel', () => box.close()));
}

// Draws when one of the lists changes that the table shows.
export function objectWatch(kind, draw) {
  let jobsSeen = '';
  return [watch(kind, draw), watch('instances', draw), ...kind !== 'schedules' ? [] : [watch('jobs', () => { // a schedule says what it did last, and when it goes on, without an event
    const now = list('jobs').filter((job) => job.type === 'instance.snapshot' || job.type.includes('backup')).map((job) => job.name + job.state).join();
    if (now !== jobsSeen) reload('schedules');
    jobsSeen = now;
  })]];
}

export function objects(kind) {
  const about = KINDS[kind];
  const place = el('div', {});
  const draw = () => fill(place, objectTable(kind));
  const unwatch = objectWatch(kind, draw);
  load(kind).then(draw).catch((problem) => { fill(place, empty(problem.message)); if (problem.status !== 403) complain(problem); });
  load('instances').catch(() => {});
  if (kind === 'schedules') load('jobs').catch(() => {});
  return {title: about.title, node: el('div', {}, heading(about.title, may(about.role) ? button(`New ${about.one}`, () => addObject(kind), {class: 'primary'}) : null), el('p', {class: 'lead'}, about.about), place),
    close: () => unwatch.forEach((fn) => fn())};
}

// An instance's backups and schedules, and its export.
export function copies(of) {
  const backups = el('div', {}), schedules = el('div', {});
  const draw = () => { fill(backups, objectTable('backups', of)); fill(schedules, objectTable('schedules', of)); };
  const unwatch = [...objectWatch('backups', draw), ...objectWatch('schedules', draw)];
  Promise.all(['backups', 'schedules', 'jobs'].map(load)).then(draw).catch(complain);
  const change = may('operator');
  const exporting = () => jobDialog(`Export ${of}`, [{name: 'path', label: 'File', required: true, hint: 'to be made on the daemon\'s host, an absolute path, such as /srv/web.tar'}], 'Export',
    (values) => call('POST', at('instances', of, '/export'), values), () => say('It is exported.'));
  return {node: el('div', {}, el('div', {class: 'heading sub'}, el('h2', {}, 'Backups'), el('div', {class: 'actions'}, change ? button('New backup', () => addObject('backups', of), {class: 'primary'}) : null,
    may('admin') ? button('Export to a file', exporting) : null)), backups,
  el('div', {class: 'heading sub'}, el('h2', {}, 'Schedules'), el('div', {class: 'actions'}, change ? button('New schedule', () => addObject('schedules', of)) : null)), schedules),
  close: () => unwatch.forEach((fn) => fn())};
}
