// The engine at work: what binary translation does each second, from the machine's counters: a picture of the way that guest
// code takes, the last minute's exits by reason, and each counter with a sentence.
import {areas} from '../graph.js';
import {get} from '../state.js';
import {bytes, count, el, empty, fill, percent} from '../ui.js';

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
  'time/translating': 'Time in the translator, of each second.',
  'time/running': 'Time in the engine, of each second: translated code, what it calls on exits, and the translator. The rest of a second the vCPU waits.',
};
const GROUPS = {code: 'Translation', exits: 'Why translated code was left', tlb: 'Address translation', interrupts: 'Interrupts and exceptions', machine: 'Devices', time: 'Time'};
const KEEP = 60, REASONS = 6; // seconds, and how many reasons have a colour of their own
const SMOOTH = 5; // samples: the engine adds up its times when it comes back from guest code, which may take some seconds

// The counters, flat: "group/name" -> value. Instances of other kinds may count in other shapes.
function flatten(value, prefix = '', out = new Map()) {
  for (const [name, v] of Object.entries(value || {})) {
    const key = prefix ? `${prefix}/${name}` : name;
    if (typeof v === 'number') out.set(key, v);
    else if (v && typeof v === 'object' && !Array.isArray(v)) flatten(v, key, out);
  }
  return out;
}

// One station of the picture: a title, a number, a sentence; and the arrow to the next one.
function station(title, unit) {
  const number = el('span', {class: 'big'}, '–'), hint = el('span', {class: 'hint'}, unit), more = el('div', {});
  return {node: el('li', {}, el('h3', {}, title), number, hint, more), number, hint, more};
}

// How lively an arrow is, 0 to 5: a step for each power of ten.
const pace = (rate) => rate > 0 ? Math.min(5, Math.max(1, Math.ceil(Math.log10(rate + 1)))) : 0;

export function engine(name, samples) {
  const rows = new Map(), rates = new Map();
  const parts = el('div', {class: 'engine-groups'});
  const wait = empty('Waiting for the first two samples. Counters are there while the machine runs.');
  const one = (key) => rates.has(key) ? rates.get(key) : null;
  const sum = (prefix) => { let n = null; for (const [key, v] of rates) if (key.startsWith(prefix)) n = (n || 0) + v; return n; };
  const share = (key) => rates.has(key) ? rates.get(key) / 1e9 : null;
  let cpu = null; // what the machine's process uses, by its host

  // ---- the way of guest code ----
  const guest = station('Guest code', 'instructions each second are seen for the first time'), translator = station('Translator', 'of a CPU\'s time'),
    cache = station('Code cache', 'of a CPU\'s time in translated code,'), exits = station('Exits', 'each second');
  const stations = [guest, translator, cache, exits];
  const picture = el('ol', {class: 'picture', 'aria-label': 'What the engine does now'}, stations.map((s) => s.node));
  const draw = () => {
    const translating = share('time/translating');
    const inCode = cpu === null ? null : Math.max(0, cpu - (translating || 0));
    guest.number.textContent = count(one('code/instructions translated'));
    translator.number.textContent = percent(translating);
    fill(translator.more, el('span', {class: 'hint'}, `${count(one('code/blocks translated'))} blocks, ${bytes(one('code/guest bytes translated'))} become ${bytes(one('code/host bytes emitted'))} of host code a second`));
    cache.number.textContent = percent(inCode);
    fill(cache.more, el('span', {class: 'hint'}, `with what its exits call; ${count(one('tlb/misses'))} TLB misses, ${count(one('interrupts/interrupts'))} interrupts a second`));
    exits.number.textContent = count(sum('exits/'));
    fill(exits.more, el('span', {class: 'hint'}, reason ? `most: ${reason}` : 'none'));
    guest.node.dataset.pace = pace(one('code/instructions translated'));
    translator.node.dataset.pace = pace(one('code/host bytes emitted'));
    cache.node.dataset.pace = pace(sum('exits/'));
  };
  let reason = '';

  // ---- each second of a vCPU ----
  const SHARES = [['translated', 'translated code and what it calls'], ['translating', 'translating'], ['waiting', 'waiting']];
  const slices = SHARES.map(([key]) => el('div', {class: `slice slice-${key}`}));
  const keys = SHARES.map(([key, label]) => ({text: el('span', {}), node: el('li', {class: `key key-${key}`}, label, ' ')}));
  keys.forEach((k) => k.node.append(k.text));
  const time = el('section', {}, el('h2', {}, 'Where a second goes'), el('div', {class: 'slices', 'aria-hidden': 'true'}, slices), el('ul', {class: 'keys'}, keys.map((k) => k.node)));
  const drawTime = () => {
    const cpus = (get('instances', name) || {}).cpus || 1;
    time.hidden = cpu === null;
    if (cpu === null) return;
    const translating = Math.min(share('time/translating') || 0, cpu);
    const values = [(cpu - translating) / cpus, translating / cpus, Math.max(0, 1 - cpu / cpus)];
    values.forEach((v, i) => {
      slices[i].style.setProperty('flex-grow', v.toFixed(4));
      keys[i].text.textContent = percent(v);
    });
  };

  // ---- exits by reason, the last minute ----
  const seen = []; // {reason: rate}, oldest first
  const minute = areas('Exits by reason, the last minute', REASONS, (v) => `${count(v)}/s`);
  const drawExits = () => {
    const now = {};
    for (const [key, v] of rates) if (key.startsWith('exits/')) now[key.slice(6)] = v;
    seen.push(now);
    if (seen.length > KEEP) seen.shift();
    const totals = new Map();
    for (const second of seen) for (const [key, v] of Object.entries(second)) totals.set(key, (totals.get(key) || 0) + v);
    const names = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
    reason = names.find((key) => now[key] > 0 && now[key] === Math.max(...Object.values(now))) || '';
    const shown = names.slice(0, REASONS - 1);
    const rest = names.slice(REASONS - 1);
    minute.draw([...shown, ...rest.length ? ['others'] : []], seen.map((second) => [...shown.map((key) => second[key] || 0),
      ...rest.length ? [rest.reduce((n, key) => n + (second[key] || 0), 0)] : []]), KEEP);
    minute.node.hidden = names.length === 0;
  };

  const node = el('div', {class: 'engine', hidden: true},
    el('p', {class: 'lead'}, 'Binary translation runs an operating system without the processor\'s help: guest code is translated, block by block, into host code that cannot reach beyond the guest, and that code is kept and run again and again. What it cannot do by itself is an exit, and costs time. All of this is the machine\'s own counters, per second.'),
    picture, time, el('section', {}, minute.node), parts);

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
  const before = []; // the last samples, oldest first
  const close = samples(name, ({time_ms, stats}) => {
    const counters = flatten(stats.engine && stats.engine.counters);
    if (last && time_ms > last.time_ms && counters.size) {
      const most = new Map();
      cpu = stats.cpu_ns >= before[0].cpu_ns ? (stats.cpu_ns - before[0].cpu_ns) / (time_ms - before[0].time_ms) / 1e6 : null;
      rates.clear();
      for (const [key, value] of counters) {
        const from = key.startsWith('time/') ? before[0] : last, over = (time_ms - from.time_ms) / 1000;
        if (from.counters.has(key) && value >= from.counters.get(key)) rates.set(key, (value - from.counters.get(key)) / over);
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
      drawExits();
      drawTime();
      draw();
      node.hidden = false;
      wait.hidden = true;
    }
    last = {time_ms, counters, cpu_ns: stats.cpu_ns};
    before.push(last);
    if (before.length > SMOOTH) before.shift();
  });
  return {node: el('div', {}, wait, node), close};
}
