// One instance: its tabs, and everything that can be done with it.
import {at, call, text} from '../api.js';
import {may} from '../app.js';
import {consoleOf} from '../console.js';
import {get, load, watch} from '../state.js';
import {badge, button, complain, confirm, dialog, el, empty, fill, form, heading, link, plain, run, say} from '../ui.js';
import {containerConsole, containerLog, processes, shell} from './container.js';
import {engine} from './engine.js';
import {fieldsOf} from './fields.js';
import {copies} from './objects.js';
import {cloneDialog, jobDialog, snapshots} from './snapshots.js';
import {samples, summary} from './summary.js';

const up = (instance) => ['running', 'paused'].includes(instance.state);

function order(name, verb, body) {
  return (event) => run(event.target, () => call('POST', at('instances', name, `/${verb}`), body));
}

function actions(instance) {
  const name = instance.name, state = instance.state, vm = instance.kind === 'vm';
  const stopped = state === 'stopped' || state === 'failed', saved = state === 'saved';
  return [
    (stopped || saved) && button('Start', order(name, 'start'), {class: 'primary'}),
    up(instance) && button('Stop', order(name, 'stop')),
    state === 'running' && button('Pause', order(name, 'pause')),
    state === 'paused' && button('Resume', order(name, 'resume'), {class: 'primary'}),
    up(instance) && button('Restart', order(name, 'restart')),
    up(instance) && vm && button('Save state', async (event) => {
      if (await confirm(`Save the state of ${name}?`, 'Its memory is kept in a file and it ends; when it is started, it goes on where it was.', 'Save state')) order(name, 'save')(event);
    }),
    (up(instance) || state === 'stopping') && button('Force stop', async (event) => {
      if (await confirm(`Force ${name} to stop?`, 'Its process ends at once, as if the power failed. What the guest has not written is lost.', 'Force stop')) {
        order(name, 'stop', {force: true})(event);
      }
    }, {class: 'danger'}),
    saved && button('Discard memory', async (event) => {
      if (await confirm(`Discard the memory of ${name}?`, 'It will start as after a power cut.', 'Discard')) order(name, 'stop', {force: true})(event);
    }, {class: 'danger'}),
    stopped && button('Clone', () => cloneDialog(instance)),
    stopped && vm && button('Make a template', () => jobDialog(`A template from ${name}`, [{name: 'name', label: 'Name', required: true, hint: 'the template\'s name'}, {name: 'description', label: 'Description'}],
      'Make a template', (values) => call('POST', '/v1/templates', {...values, instance: name}), () => { location.hash = '#/templates'; })),
    stopped && button('Rename', () => ask(`Rename ${name}`, 'Rename', 'the new name', async (value) => {
      await call('POST', at('instances', name, '/rename'), {name: value});
      location.hash = `#/instances/${encodeURIComponent(value)}`;
    })),
    (stopped || saved) && button('Delete', async (event) => {
      if (await confirm(`Delete ${name}?`, vm ? 'The instance, its snapshots, its log and its history are gone for good. Its volumes stay.' : 'The container, its log and its history are gone for good. Its folders stay.', 'Delete')) {
        run(event.target, () => call('DELETE', at('instances', name)));
      }
    }, {class: 'danger'}),
  ];
}

function ask(title, action, hint, send) {
  const box = dialog(title, form([{name: 'name', label: 'Name', required: true, hint}], action, async (values) => { await send(values.name); box.close(); }),
    button('Cancel', () => box.close()));
}

// ---- tabs: each returns {node, update?(instance), close?()} ----

function consoleTab(name) {
  let one = null;
  const node = el('div', {});
  return {node, update: (instance) => {
    if (up(instance) && !one) { one = consoleOf(name); fill(node, one.node); }
    if (!up(instance) && !one) fill(node, empty('The console is there while the instance runs.'));
  }, close: () => one && one.close()};
}

function logTab(name) {
  const pre = el('pre', {class: 'log', tabindex: '0', role: 'region', 'aria-label': 'Log'});
  const read = () => text(at('instances', name, '/log')).then((t) => {
    pre.textContent = plain(t) || 'nothing yet';
    pre.scrollTop = pre.scrollHeight;
  }).catch(complain);
  read();
  return {node: el('div', {}, el('p', {class: 'hint'}, 'The end of what its console has shown.'), pre, el('div', {class: 'actions'}, button('Read again', read)))};
}

function settings(name) {
  const node = el('div', {});
  let made = false;
  return {node, update: (instance) => {
    if (made) return;
    made = true;
    const fields = fieldsOf(instance.kind, 'later').map((field) => field.name ? {...field, value: field.show ? field.show(instance[field.name]) : instance[field.name]} : field);
    fill(node, el('p', {class: 'hint'}, 'What can\'t change while it runs waits for its next start.'), form(fields, 'Save', async (values) => {
      values.labels = {...Object.fromEntries(Object.keys(instance.labels || {}).map((old) => [old, null])), ...values.labels};
      if (instance.kind === 'container') values.interactive = values.terminal;
      instance = await call('PATCH', at('instances', name), values, {'If-Match': `"${get('instances', name).version}"`});
      say('Saved.');
    }));
  }};
}

// Each kind's tabs: the address's word, the label, what makes it.
const TABS = {
  vm: [['summary', 'Summary', summary], ['console', 'Console', consoleTab], ['engine', 'Engine', (name) => engine(name, samples)], ['log', 'Log', logTab],
    ['snapshots', 'Snapshots', snapshots], ['backups', 'Backups', copies], ['settings', 'Settings', settings]],
  container: [['summary', 'Summary', summary], ['console', 'Console', containerConsole], ['shell', 'Shell', shell], ['log', 'Log', containerLog], ['processes', 'Processes', processes],
    ['settings', 'Settings', settings]],
};

export function instance(name, tab = 'summary') {
  let part = null; // made when it is known what kind of instance this is
  const state = el('span', {role: 'status'});
  const buttons = el('div', {class: 'actions'});
  const content = el('div', {});
  const missing = el('div', {hidden: true}, empty(`There is no instance ${name}.`, link('#/instances', 'All instances')));
  let shownState = '', shownOnce = false;
  const draw = () => {
    const one = get('instances', name);
    if (one && !part) {
      const tabs = TABS[one.kind] || TABS.vm, make = (tabs.find(([key]) => key === tab) || tabs[0])[2];
      part = make(name);
      fill(content, el('nav', {class: 'tabs', 'aria-label': 'Parts of this instance'}, tabs.map(([key, label]) => el('a', {href: `#/instances/${encodeURIComponent(name)}/${key}`,
        'aria-current': key === tab ? 'page' : null}, label))), part.node);
      requestAnimationFrame(() => content.querySelector('.tabs [aria-current]')?.scrollIntoView({block: 'nearest', inline: 'nearest'})); // at phone width they scroll
    }
    content.hidden = !one;
    missing.hidden = Boolean(one);
    if (!one) { fill(buttons); fill(state); return; }
    if (one.state !== shownState || !shownOnce) {
      fill(state, badge(one.state));
      fill(buttons, may('operator') || one.owner ? actions(one) : null);
      shownState = one.state;
      shownOnce = true;
    }
    if (part.update) part.update(one);
  };
  const unwatch = [watch('instances', draw), watch('jobs', draw)];
  Promise.all([load('instances'), load('jobs').catch(() => {})]).then(draw).catch(complain);
  const title = heading(name, buttons);
  title.firstChild.after(state);
  return {title: name, node: el('div', {}, el('p', {class: 'crumb'}, link('#/instances', 'Instances')), title, content, missing),
    close: () => { unwatch.forEach((fn) => fn()); if (part && part.close) part.close(); }};
}
