// The engine at work: what binary translation does each second, from the machine's counters, each with a sentence.
import {spark} from '../graph.js';
import {count, el, empty, fill, percent} from '../ui.js';

const ABOUT = {
  'code/blocks translated': 'A straight run of guest instructions, up to its jump, is translated once and kept. In a warm guest this goes to zero: everything runs from the cache.',
  'code/instructions translated': 'Guest instructions in those blocks. Most are copied as they are, since guest and host have the same instruction set.',
  'code/guest bytes translated': 'How much guest code was read.',
  'code/host bytes emitted': 'How much host code came of it; more than the guest\'s, because memory accesses are checked.',
  'code/cache flushes': 'The code cache was full, or all of it had become wrong, and it begins anew.',
  'code/blocks invalidated': 'Blocks that no longer hold because their page was mapped otherwise or written.',
  'code/blocks overwritten': 'The guest wrote over code that had been translated: loaders, just-in-time compilers, patched kernels.',
  'exits/unlinked jumps': 'A block ended in a jump whose target was not linked yet; the next time it goes there directly.',
  'exits/jump cache misses': 'An indirect jump or return whose target was not in the jump cache.',
  'exits/instructions in C that leave': 'Sensitive instructions (control registers, descriptor tables) that a function carries out.',
  'exits/slow memory accesses': 'Accesses that are not plain memory: devices, page crossings, watched pages.',
  'exits/groups across a page': 'An access group that crosses a page and is taken apart.',
  'exits/host faults': 'The host reported a fault in translated code; it becomes the guest\'s own exception.',
  'exits/kicks': 'Something outside wanted attention: an interrupt, a pause, a stop.',
  'exits/halts': 'The guest had nothing to do and stood still until the next interrupt.',
  'exits/bounced operands': 'A vector operand that was copied because it crosses a page.',
  'exits/port accesses': 'Instructions that read or write I/O ports, such as those of the serial line.',
  'exits/system calls': 'The guest\'s programs called the guest\'s kernel.',
  'tlb/misses': 'An address was not in the software TLB; the guest\'s page tables were walked.',
  'tlb/flushes': 'The guest changed its address space in a way that empties the TLB.',
  'tlb/address space switches': 'The guest switched to another process; entries are tagged, so most survive.',
  'tlb/pages dropped': 'Single translations that the guest asked to forget.',
  'tlb/times grown': 'The TLB was too small for the working set and was made larger.',
  'interrupts/exceptions': 'Exceptions of the guest: page faults, divisions by zero, breakpoints.',
  'interrupts/page faults': 'Of those, page faults: the guest\'s kernel brings in memory.',
  'interrupts/interrupts': 'Interrupts of devices and timers that the guest took.',
  'machine/mmio-reads': 'Reads from devices in memory space.',
  'machine/mmio-writes': 'Writes to devices in memory space.',
  'machine/port-reads': 'Reads from I/O ports.',
  'machine/port-writes': 'Writes to I/O ports.',
  'machine/unclaimed': 'Accesses where there is no device.',
  'time/translating': 'Time spent in the translator, of each second.',
  'time/running': 'Time spent in guest code and what it needs, of each second.',
};
const GROUPS = {code: 'Translation', exits: 'Why translated code was left', tlb: 'Address translation', interrupts: 'Interrupts and exceptions', machine: 'Devices', time: 'Time'};
const KEEP = 60;

// The counters, flat: "group/name" -> value. Instances of other kinds may count in other shapes.
function flatten(value, prefix = '', out = new Map()) {
  for (const [name, v] of Object.entries(value || {})) {
    const key = prefix ? `${prefix}/${name}` : name;
    if (typeof v === 'number') out.set(key, v);
    else if (v && typeof v === 'object' && !Array.isArray(v)) flatten(v, key, out);
  }
  return out;
}

export function engine(name, samples) {
  const rows = new Map(), rates = new Map();
  const parts = el('div', {class: 'engine-groups'});
  const wait = empty('Waiting for the first two samples. Counters are there while the machine runs.');
  const steps = [
    ['Guest code', 'runs natively, from the cache', () => share('time/running')],
    ['Leaves the cache', 'exits each second', () => sum('exits/')],
    ['Translates', 'new blocks each second', () => one('code/blocks translated')],
    ['Page walks', 'TLB misses each second', () => one('tlb/misses')],
    ['Is interrupted', 'interrupts each second', () => one('interrupts/interrupts')],
  ].map(([title, unit, value]) => {
    const number = el('span', {class: 'big'}, '–'), line = spark(), seen = [];
    return {node: el('li', {}, el('h3', {}, title), number, el('span', {class: 'hint'}, unit), line.node), update: () => {
      const v = value();
      number.textContent = v === null ? '–' : title === 'Guest code' ? percent(v) : count(v);
      seen.push(v || 0);
      if (seen.length > KEEP) seen.shift();
      line.draw(seen);
    }};
  });
  const one = (key) => rates.has(key) ? rates.get(key) : null;
  const sum = (prefix) => { let n = null; for (const [key, v] of rates) if (key.startsWith(prefix)) n = (n || 0) + v; return n; };
  const share = (key) => rates.has(key) ? rates.get(key) / 1e9 : null;
  const picture = el('ol', {class: 'picture', 'aria-label': 'What the engine does now'}, steps.map((s) => s.node));
  const node = el('div', {class: 'engine', hidden: true},
    el('p', {class: 'lead'}, 'Binary translation runs an operating system without the processor\'s help: guest code is translated block by block into host code that cannot reach beyond the guest, and runs from a cache. What the cache cannot do by itself is an exit, and costs time. These are the machine\'s own counters, per second.'),
    picture, parts);

  const rowFor = (key) => {
    if (rows.has(key)) return rows.get(key);
    const [group, ...rest] = key.includes('/') ? key.split('/') : ['other', key];
    let body = parts.querySelector(`tbody[data-group="${CSS.escape(group)}"]`);
    if (!body) {
      body = el('tbody', {'data-group': group});
      parts.append(el('section', {}, el('h2', {}, Object.hasOwn(GROUPS, group) ? GROUPS[group] : group), el('div', {class: 'wide'}, el('table', {class: 'counters'}, el('thead', {}, el('tr', {}, el('th', {scope: 'col'}, 'Counter'),
        el('th', {scope: 'col', class: 'number'}, 'per second'), el('th', {scope: 'col', class: 'bar-head'}, 'share'), el('th', {scope: 'col', class: 'number'}, 'in all'))), body))));
    }
    const bar = el('div', {class: 'bar'}), rate = el('td', {class: 'number'}), all = el('td', {class: 'number'});
    body.append(el('tr', {}, el('th', {scope: 'row'}, rest.join(' '), el('p', {class: 'hint'}, Object.hasOwn(ABOUT, key) ? ABOUT[key] : '')), rate, el('td', {'aria-hidden': 'true'}, bar), all));
    const row = {group, bar, rate, all};
    rows.set(key, row);
    return row;
  };

  let last = null;
  const close = samples(name, ({time_ms, stats}) => {
    const counters = flatten(stats.engine && (stats.engine.counters || stats.engine));
    if (last && time_ms > last.time_ms && counters.size) {
      const seconds = (time_ms - last.time_ms) / 1000, most = new Map();
      rates.clear();
      for (const [key, value] of counters) {
        if (last.counters.has(key) && value >= last.counters.get(key)) rates.set(key, (value - last.counters.get(key)) / seconds);
        const group = key.split('/')[0];
        most.set(group, Math.max(most.get(group) || 0, rates.get(key) || 0));
      }
      for (const [key, value] of counters) {
        const row = rowFor(key), rate = rates.has(key) ? rates.get(key) : null;
        const ns = key.startsWith('time/');
        row.rate.textContent = rate === null ? '–' : ns ? percent(rate / 1e9) : count(rate);
        row.all.textContent = ns ? `${(value / 1e9).toFixed(1)} s` : count(value);
        row.bar.style.setProperty('--part', rate && most.get(row.group) ? Math.max(0.01, rate / most.get(row.group)) : 0);
      }
      for (const step of steps) step.update();
      node.hidden = false;
      wait.hidden = true;
    }
    last = {time_ms, counters};
  });
  return {node: el('div', {}, wait, node), close};
}
