// What an instance is, and what it uses: facts and graphs, live or kept.
import {at, call, socket} from '../api.js';
import {graph} from '../graph.js';
import {list} from '../state.js';
import {button, bytes, complain, duration, el, facts, fill, link, percent, when} from '../ui.js';

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

const SPANS = [['live', 'Live'], ['hour', 'Hour'], ['day', 'Day'], ['month', 'Month']];
const LIVE_GAP = 15000; // what was kept before the page opened comes each 10 s
const LENGTH = {live: 120e3, hour: 3600e3, day: 86400e3, month: 31 * 86400e3};
const SERIES = ['cpu', 'memory', 'disk_read', 'disk_write', 'net_in', 'net_out'];
const total = (items, member) => items && items.length && items.every((item) => member in item) ? items.reduce((sum, item) => sum + item[member], 0) : null;

const names = (items, page) => items && items.length ? items.map((v, i) => [i ? ', ' : '', page && v !== 'user' ? link(`#/${page}`, v) : v]) : 'none';

const machineFacts = (instance) => [['Kind', 'machine'], ['Engine', instance.engine || '–'], ['CPUs', String(instance.cpus)], ['Memory', bytes(instance.memory)],
  ['Volumes', names(instance.volumes, 'volumes')], ['Networks', names(instance.networks, 'networks')], ['Ports', names(instance.publish)]];

const containerFacts = (instance) => [['Kind', 'container'], ['Image', instance.image], ['Command', instance.command ? el('code', {}, instance.command.join(' ')) : 'the image\'s own'],
  ['CPUs', instance.cpu_limit || 'no limit'], ['Memory', instance.memory ? bytes(instance.memory) : 'no limit'], ['Processes', instance.pids_limit ? String(instance.pids_limit) : 'no limit'],
  ['Network', instance.host_network ? 'the host\'s' : instance.network_mode || 'user'], ['Ports', names(instance.publish)], ['Folders', names(instance.mounts)]];

export function summary(name) {
  let span = 'live', times = [], series = Object.fromEntries(SERIES.map((s) => [s, []])), last = null;
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
    for (const which of ['disk', 'net']) graphs[which].node.hidden = instance.kind !== 'vm'; // nobody counts a container's
    fill(known,
      instance.state_reason ? el('p', {class: 'notice'}, instance.state_reason) : null,
      instance.after_restart ? el('p', {class: 'notice'}, 'Changes wait for its next start.') : null,
      instance.description ? el('p', {class: 'description'}, instance.description) : null,
      facts(...instance.kind === 'vm' ? machineFacts(instance) : containerFacts(instance), ['Owner', instance.owner || '–'],
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

