// An instance's snapshots as a tree: each under the one that the instance was at when it was made; where the instance is now.
import {at, call} from '../api.js';
import {may} from '../app.js';
import {get, list, watch} from '../state.js';
import {badge, button, bytes, complain, confirm, dialog, el, empty, fill, form, run, when} from '../ui.js';
import {watchJob} from './create.js';

const LIMIT = 1000;

// Starts a job from a dialog and shows it there to its end. send(values) answers the job.
export function jobDialog(title, fields, action, send, then) {
  const place = el('div', {});
  const box = dialog(title, el('div', {}, form(fields, action, async (values) => {
    const job = await send(values);
    await watchJob(job, place);
    box.close();
    if (then) then(values);
  }), place), button('Close', () => box.close()));
  return box;
}

export function cloneDialog(instance, snapshot) {
  return jobDialog(`Clone ${instance.name}`, [{name: 'name', label: 'Name', required: true, hint: 'the copy\'s name'},
    ...instance.kind === 'vm' ? [{name: 'mode', label: 'Disks', options: ['full', 'linked'], value: 'full',
      hint: 'full: copied; linked: quick and small, but the original can\'t be started or deleted as long as there is the copy'}] : []],
  'Clone', ({name, mode}) => call('POST', at('instances', instance.name, '/clone'), {name, ...mode === 'linked' ? {mode} : {}, ...snapshot ? {snapshot} : {}}));
}

function create(instance) {
  const running = ['running', 'paused'].includes(instance.state);
  jobDialog(`New snapshot of ${instance.name}`, [
    {name: 'name', label: 'Name', hint: 'made from the time if it is empty'},
    {name: 'description', label: 'Description'},
    ...running ? [{name: 'memory', label: 'With its memory', type: 'checkbox', value: true, hint: 'then it goes on there when it is restored; else it starts as after a power cut'}] : [],
    {name: 'keep', label: 'Keep', hint: 'days until it is deleted by itself; empty: for good', parse: (v) => /^\d+$/.test(v) ? Number(v) * 86400 : v},
  ], 'Make snapshot', (values) => call('POST', at('instances', instance.name, '/snapshots'), values));
}

export function snapshots(name) {
  const place = el('div', {}), head = el('div', {class: 'actions'});
  let items = null, reading = false, again = false;
  const one = () => get('instances', name);
  const url = (snapshot, more = '') => at('instances', name, `/snapshots/${encodeURIComponent(snapshot)}${more}`);

  const restore = async (event, item) => {
    if (!await confirm(`Go back to ${item.name}?`, `${name} becomes what it was on ${when(item.created_at)}. What it has done since its last snapshot is lost.`, 'Restore')) return;
    run(event.target, () => call('POST', url(item.name, '/restore')));
  };
  const remove = async (event, item) => {
    if (!await confirm(`Delete the snapshot ${item.name}?`, 'The instance stays as it is, and so do the other snapshots.', 'Delete')) return;
    run(event.target, () => call('DELETE', url(item.name)));
  };
  const here = () => el('li', {class: 'here'}, el('div', {class: 'snapshot'}, el('strong', {}, 'now'), el('span', {class: 'hint'}, `${name} is here`)));
  const branch = (item, children) => el('li', {}, el('div', {class: 'snapshot'},
    el('div', {}, el('strong', {}, item.name), ' ', item.state !== 'ready' ? badge(item.state) : null, item.memory ? el('span', {class: 'label'}, 'with memory') : null,
      el('span', {class: 'hint'}, `${when(item.created_at)}, up to ${bytes(item.size)}${item.schedule ? `, by the schedule ${item.schedule}` : ''}${item.expires_at ? `, until ${when(item.expires_at)}` : ''}`),
      item.description ? el('p', {class: 'description'}, item.description) : null),
    may('operator') && item.state === 'ready' ? el('div', {class: 'actions'},
      button('Restore', (event) => restore(event, item), {class: 'quiet', 'aria-label': `Restore ${item.name}`}),
      button('Clone', () => cloneDialog(one(), item.name), {class: 'quiet', 'aria-label': `Clone ${item.name}`}),
      button('Delete', (event) => remove(event, item), {class: 'danger quiet', 'aria-label': `Delete ${item.name}`})) : null),
  children);

  const draw = () => {
    const instance = one();
    if (!items || !instance) return;
    const known = new Set(items.map((item) => item.name)), under = new Map();
    for (const item of items) {
      const parent = known.has(item.parent) ? item.parent : '';
      if (!under.has(parent)) under.set(parent, []);
      under.get(parent).push(item);
    }
    const at_ = known.has(instance.snapshot) ? instance.snapshot : '', drawn = new Set();
    const tree = (parent) => {
      const rows = (under.get(parent) || []).filter((item) => !drawn.has(item.name)).map((item) => { drawn.add(item.name); return branch(item, tree(item.name)); });
      if (parent === at_) rows.push(here());
      return rows.length ? el('ul', {class: 'tree', 'aria-label': parent ? `made after ${parent}` : 'Snapshots'}, rows) : null;
    };
    fill(place, items.length ? tree('') : empty('No snapshots yet.'));
    fill(head, may('operator') ? button('New snapshot', () => create(one()), {class: 'primary'}) : null);
  };
  // Events of the instance and the ends of its jobs say when to read again.
  const read = async () => {
    if (reading) { again = true; return; }
    reading = true;
    do {
      again = false;
      try {
        items = (await call('GET', at('instances', name, `/snapshots?limit=${LIMIT}&sort=created_at`))).items;
      } catch (problem) {
        if (problem.status !== 404) complain(problem);
        items = items || [];
      }
    } while (again);
    reading = false;
    draw();
  };
  let seen = '';
  const unwatch = watch('reconnected', read);
  read();
  return {node: el('div', {}, el('p', {class: 'lead'}, 'A snapshot keeps an instance\'s disks as they are at one moment, and its memory if it runs.'), head, place),
    update: (instance) => {
      const ended = list('jobs').filter((job) => job.target === `instances/${name}`).map((job) => `${job.name}${job.state}`).join(' ');
      const now = `${instance.version} ${ended}`;
      if (seen && now !== seen) read();
      seen = now;
      draw();
    }, close: unwatch};
}
