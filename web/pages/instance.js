// One instance: summary with graphs, console, engine, settings; and everything that can be done with it.
import {at, call, socket, text} from '../api.js';
import {may} from '../app.js';
import {consoleOf} from '../console.js';
import {graph} from '../graph.js';
import {get, list, load, watch} from '../state.js';
import {badge, button, bytes, complain, confirm, count, dialog, duration, el, empty, facts, fill, form, heading, lines, link, percent, run, say, when, words} from '../ui.js';
import {engine} from './engine.js';

const TABS = [['summary', 'Summary'], ['console', 'Console'], ['engine', 'Engine'], ['log', 'Log'], ['settings', 'Settings']];
const up = (instance) => ['running', 'paused'].includes(instance.state);

// Live samples while a tab is open: fn(sample) each second. Mends itself.
export function samples(name, fn) {
  let ws = null, timer = 0, closed = false;
  const open = () => {
    if (closed) return;
    ws = socket(at('instances', name, '/stats/stream'));
    ws.onmessage = (message) => fn(JSON.parse(message.data));
    ws.onclose = () => { if (!closed) timer = setTimeout(open, 3000); };
  };
  open();
  return () => { closed = true; clearTimeout(timer); ws.close(); };
}

function order(name, verb, body) {
  return (event) => run(event.target, () => call('POST', at('instances', name, `/${verb}`), body));
}

function actions(instance) {
  const name = instance.name, state = instance.state;
  const stopped = state === 'stopped' || state === 'failed';
  return [
    stopped && button('Start', order(name, 'start'), {class: 'primary'}),
    up(instance) && button('Stop', order(name, 'stop')),
    state === 'running' && button('Pause', order(name, 'pause')),
    state === 'paused' && button('Resume', order(name, 'resume'), {class: 'primary'}),
    up(instance) && button('Restart', order(name, 'restart')),
    (up(instance) || state === 'stopping') && button('Force stop', async (event) => {
      if (await confirm(`Force ${name} to stop?`, 'Its process ends at once, as if the power failed. What the guest has not written is lost.', 'Force stop')) {
        order(name, 'stop', {force: true})(event);
      }
    }, {class: 'danger'}),
    stopped && button('Clone', () => ask(`Clone ${name}`, 'Clone', 'the copy\'s name', (value) => call('POST', at('instances', name, '/clone'), {name: value}))),
    stopped && button('Rename', () => ask(`Rename ${name}`, 'Rename', 'the new name', async (value) => {
      await call('POST', at('instances', name, '/rename'), {name: value});
      location.hash = `#/instances/${encodeURIComponent(value)}`;
    })),
    stopped && button('Delete', async (event) => {
      if (await confirm(`Delete ${name}?`, 'The instance, its log and its history are gone for good. Its volumes stay.', 'Delete')) {
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

const SPANS = [['live', 'Live'], ['hour', 'Hour'], ['day', 'Day'], ['month', 'Month']];
const LIVE_GAP = 15000; // what was kept before the page opened comes each 10 s
const LENGTH = {live: 120e3, hour: 3600e3, day: 86400e3, month: 31 * 86400e3};
const SERIES = ['cpu', 'memory', 'disk_read', 'disk_write', 'net_in', 'net_out'];
const total = (items, member) => items && items.length && items.every((item) => member in item) ? items.reduce((sum, item) => sum + item[member], 0) : null;

function summary(name) {
  let span = 'live', times = [], series = Object.fromEntries(SERIES.map((s) => [s, []])), last = null, current = null;
  const rate = (unit) => (n) => `${unit(n)}/s`;
  const graphs = {
    cpu: graph('CPU', ['CPU'], (n) => percent(n), 0.1), memory: graph('Memory', ['memory'], bytes, 1 << 20, true),
    disk: graph('Disk', ['read', 'write'], rate(bytes), 1024, true), net: graph('Network', ['in', 'out'], rate(bytes), 1024, true),
  };
  const known = el('div', {});
  const now = el('span', {class: 'hint', role: 'status'});
  const draw = (t, s, gap) => {
    const to = Date.now(), from = to - LENGTH[span];
    graphs.cpu.draw(t, [s.cpu], from, to, gap);
    graphs.memory.draw(t, [s.memory], from, to, gap);
    graphs.disk.draw(t, [s.disk_read, s.disk_write], from, to, gap);
    graphs.net.draw(t, [s.net_in, s.net_out], from, to, gap);
  };
  let readAt = 0, step = 0;
  const history = async () => {
    readAt = Date.now();
    try {
      const h = await call('GET', at('instances', name, `/history?span=${span}`));
      if (h.span === span) { step = h.step_ms; draw(h.time_ms, h.series, step); }
    } catch (problem) { complain(problem); }
  };
  const sample = ({time_ms, stats}) => {
    const e = stats.engine || {};
    const raw = {cpu: stats.cpu_ns / 1e9, memory: stats.rss, disk_read: total(e.disks, 'read_bytes'), disk_write: total(e.disks, 'write_bytes'),
      net_in: total(e.networks, 'rx_bytes'), net_out: total(e.networks, 'tx_bytes')};
    if (last && time_ms > last.time_ms && stats.cpu_ns >= last.stats_cpu) {
      const seconds = (time_ms - last.time_ms) / 1000;
      times.push(time_ms);
      for (const s of SERIES) series[s].push(s === 'memory' ? raw[s] : raw[s] === null || last.raw[s] === null ? null : Math.max(0, raw[s] - last.raw[s]) / seconds);
      while (times[0] < time_ms - LENGTH.live) { times.shift(); for (const s of SERIES) series[s].shift(); }
      now.textContent = `up ${duration(stats.uptime_ms)}`;
    }
    last = {time_ms, raw, stats_cpu: stats.cpu_ns};
    if (span === 'live') draw(times, series, LIVE_GAP);
    else if (step && Date.now() - readAt > step) history(); // there is one more record by now
  };
  const close = samples(name, sample);
  const pick = el('div', {class: 'segments', role: 'group', 'aria-label': 'Time that the graphs show'}, SPANS.map(([key, label]) => button(label, (event) => {
    span = key;
    for (const b of pick.children) b.setAttribute('aria-pressed', String(b === event.target));
    if (key === 'live') draw(times, series, LIVE_GAP); else history();
  }, {'aria-pressed': String(key === span)})));
  draw(times, series, LIVE_GAP);
  call('GET', at('instances', name, '/history?span=hour')).then((h) => {
    const old = h.time_ms.filter((t) => t > Date.now() - LENGTH.live && (!times.length || t < times[0]));
    const first = h.time_ms.indexOf(old[0]);
    if (first < 0) return;
    times.unshift(...old);
    for (const s of SERIES) series[s].unshift(...h.series[s].slice(first, first + old.length));
    if (span === 'live') draw(times, series, LIVE_GAP);
  }).catch(complain);
  const update = (instance) => {
    current = instance;
    const names = (items, page) => items && items.length ? items.map((v, i) => [i ? ', ' : '', page && v !== 'user' ? link(`#/${page}`, v) : v]) : 'none';
    fill(known,
      instance.state_reason ? el('p', {class: 'notice'}, instance.state_reason) : null,
      instance.after_restart ? el('p', {class: 'notice'}, 'Changes wait for its next start.') : null,
      instance.description ? el('p', {class: 'description'}, instance.description) : null,
      facts(['Kind', current.kind === 'vm' ? 'machine' : current.kind], ['Engine', instance.engine || '–'], ['CPUs', String(instance.cpus)], ['Memory', bytes(instance.memory)],
        ['Volumes', names(instance.volumes, 'volumes')], ['Networks', names(instance.networks, 'networks')], ['Owner', instance.owner || '–'],
        ['Created', when(instance.created_at)], ['Started', when(instance.started_at)], ['Restarts', String(instance.restarts)],
        ['Exit status', instance.exit_status === undefined ? '–' : String(instance.exit_status)],
        ['Labels', Object.keys(instance.labels || {}).length ? Object.entries(instance.labels).map(([k, v]) => el('span', {class: 'label'}, `${k}=${v}`)) : 'none']),
      openJobs(name));
  };
  return {node: el('div', {}, known, el('div', {class: 'heading sub'}, el('h2', {}, 'What it uses'), now, pick), el('div', {class: 'graphs'}, Object.values(graphs).map((g) => g.node))), update, close};
}

function openJobs(name) {
  const open = list('jobs').filter((job) => job.target === `instances/${name}` && ['queued', 'running'].includes(job.state));
  return open.length ? el('div', {class: 'jobs'}, open.map((job) => el('p', {class: 'notice'}, link(`#/jobs/${job.name}`, job.type), ` ${job.step || job.state}`))) : null;
}

function consoleTab(name) {
  let one = null;
  const node = el('div', {});
  return {node, update: (instance) => {
    if (up(instance) && !one) { one = consoleOf(name); fill(node, one.node); }
    if (!up(instance) && !one) fill(node, empty('The console is there while the instance runs.'));
  }, close: () => one && one.close()};
}

function logTab(name) {
  const pre = el('pre', {class: 'log', tabindex: '0', 'aria-label': 'Log'});
  const read = () => text(at('instances', name, '/log')).then((t) => {
    pre.textContent = t.replace(/\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1f\x7f]/g, '') || 'nothing yet';
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
    const labels = Object.entries(instance.labels || {}).map(([k, v]) => `${k}=${v}`).join('\n');
    fill(node, el('p', {class: 'hint'}, 'CPUs, memory, boot and devices of a running instance change at its next start.'), form([
      {name: 'description', label: 'Description', value: instance.description},
      {name: 'cpus', label: 'CPUs', value: instance.cpus, parse: (v) => /^\d+$/.test(v) ? Number(v) : v, hint: '1 to 32'},
      {name: 'memory', label: 'Memory', value: instance.memory % 1048576 === 0 ? `${instance.memory / 1048576}M` : instance.memory, hint: 'such as 512M or 2G'},
      {name: 'append', label: 'Kernel command line', value: instance.append, clears: true},
      {name: 'volumes', label: 'Volumes', value: (instance.volumes || []).join(' '), parse: words, clears: false, hint: 'names, separated by spaces'},
      {name: 'networks', label: 'Networks', value: (instance.networks || []).join(' '), parse: words, hint: 'names; "user" is always there'},
      {name: 'restart_policy', label: 'When it ends by itself', options: ['never', 'on-failure', 'always'], value: instance.restart_policy, hint: 'whether it is started again'},
      {name: 'stop_timeout', label: 'Stop timeout', value: instance.stop_timeout, parse: Number, hint: 'seconds from the power button until it is ended by force'},
      {name: 'autostart', label: 'Start with the daemon', type: 'checkbox', value: instance.autostart},
      {name: 'labels', label: 'Labels', rows: 3, value: labels, hint: 'NAME=TEXT, one per line; the label "group" makes the tree', parse: labelsOf},
    ], 'Save', async (values) => {
      for (const old of Object.keys(instance.labels || {})) values.labels = {[old]: null, ...values.labels};
      values.description = values.description || '';
      values.volumes = values.volumes || [];
      values.networks = values.networks || [];
      instance = await call('PATCH', at('instances', name), values, {'If-Match': `"${get('instances', name).version}"`});
      say('Saved.');
    }));
  }};
}

export function labelsOf(value) {
  return Object.fromEntries(lines(value).map((line) => { const i = line.indexOf('='); return i < 0 ? [line, ''] : [line.slice(0, i).trim(), line.slice(i + 1).trim()]; }));
}

export function instance(name, tab = 'summary') {
  const make = {summary, console: consoleTab, engine: (n) => engine(n, samples), log: logTab, settings}[tab] || summary;
  const part = make(name);
  const state = el('span', {role: 'status'});
  const buttons = el('div', {class: 'actions'});
  const content = el('div', {});
  const missing = el('div', {hidden: true}, empty(`There is no instance ${name}.`, link('#/instances', 'All instances')));
  let shownState = '', shownOnce = false;
  const draw = () => {
    const one = get('instances', name);
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
  const tabs = el('nav', {class: 'tabs', 'aria-label': 'Parts of this instance'}, TABS.map(([key, label]) => el('a', {href: `#/instances/${encodeURIComponent(name)}/${key}`,
    'aria-current': key === tab ? 'page' : null}, label)));
  fill(content, tabs, part.node);
  const title = heading(name, buttons);
  title.firstChild.after(state);
  return {title: name, node: el('div', {}, el('p', {class: 'crumb'}, link('#/instances', 'Instances')), title, content, missing),
    close: () => { unwatch.forEach((fn) => fn()); if (part.close) part.close(); }};
}
