// The daemon and its host; for administrators, who changed what.
import {call} from '../api.js';
import {may} from '../app.js';
import {bytes, complain, duration, el, facts, fill, heading, when} from '../ui.js';

const SHOWN = 100;

export function host() {
  const place = el('div', {}), audit = el('div', {});
  call('GET', '/v1/host').then((h) => fill(place, facts(['Version', h.version], ['Kernel', h.kernel], ['CPUs', String(h.cpus)], ['Memory', bytes(h.memory)],
    ['Daemon up', duration(h.uptime_ms)], ['State directory', h.state_dir]))).catch(complain);
  const read = async () => {
    const {last} = await call('GET', '/v1/audit?limit=1');
    const {items} = await call('GET', `/v1/audit?after=${Math.max(0, last - SHOWN)}&limit=${SHOWN}`);
    fill(audit, el('h2', {}, 'Who changed what'), el('div', {class: 'wide'}, el('table', {class: 'list'}, el('thead', {}, el('tr', {}, ['When', 'Who', 'From', 'Request', 'Answer'].map((t) => el('th', {scope: 'col'}, t)))),
      el('tbody', {}, items.reverse().map((r) => el('tr', {}, el('td', {}, when(r.time)), el('td', {}, r.who), el('td', {}, r.from), el('td', {}, `${r.method} ${r.path}`), el('td', {}, String(r.status))))))));
  };
  if (may('admin')) read().catch(complain);
  return {title: 'Host', node: el('div', {}, heading('Host'), place, audit)};
}
