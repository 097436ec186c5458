// All instances, as a list or as a tree of groups; live. Only the rows in sight are in the
// document, and scrolling fills the same rows anew, so that thousands scroll and filter within a frame.
import {call} from '../api.js';
import {may} from '../app.js';
import {load, list, serial, watch} from '../state.js';
import {badge, button, bytes, complain, el, empty, fill, heading, link, when} from '../ui.js';
import {jobDialog} from './snapshots.js';

const GROUPS = {none: 'no groups', state: 'state', kind: 'kind', owner: 'owner', label: 'label "group"'};
const kept = {filter: '', group: 'none', sort: 'name', closed: new Set(), top: 0};
const AROUND = 8, SPARE_MAX = 100; // rows beyond those in sight; rows kept for later
const COLUMNS = [['name', 'Name'], ['state', 'State'], ['kind', 'Kind'], ['cpus', 'CPUs'], ['memory', 'Memory'], ['owner', 'Owner'], ['started_at', 'Started']];

// What is sought in, made once for each object: an instance that changes is a new object.
const texts = new WeakMap();
function textOf(instance) {
  let text = texts.get(instance);
  if (text === undefined) {
    const labels = Object.entries(instance.labels || {});
    text = [instance.name, instance.state, instance.kind, instance.owner, instance.description, instance.image, ...labels.map(([k, v]) => `${k}=${v}`)].join(' ').toLowerCase();
    texts.set(instance, text);
  }
  return text;
}

// Words must all be found; member=text looks in one member or label.
function matches(instance, words) {
  return words.every((word) => {
    const [member, value] = word.split('=');
    if (value !== undefined && Object.hasOwn(instance, member)) return String(instance[member]).toLowerCase() === value;
    return textOf(instance).includes(word);
  });
}

const collator = new Intl.Collator(undefined, {numeric: true});

function groupOf(instance) {
  if (kept.group === 'label') return (instance.labels || {}).group || 'without the label';
  return String(instance[kept.group] || '–');
}

// All of them in order, sorted when the list or the order changes; a filter's next letter finds them sorted.
const sorted = {items: [], by: '', serial: -1};
function inOrder() {
  if (sorted.by !== kept.sort || sorted.serial !== serial('instances')) {
    const key = kept.sort.replace('-', ''), sign = kept.sort.startsWith('-') ? -1 : 1;
    sorted.items = list('instances').sort((a, b) => {
      const x = a[key] ?? '', y = b[key] ?? '';
      return sign * (typeof x === 'number' ? x - y : collator.compare(x, y)) || collator.compare(a.name, b.name);
    });
    sorted.by = kept.sort;
    sorted.serial = serial('instances');
  }
  return sorted.items;
}

function flat() {
  const words = kept.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? inOrder().filter((i) => matches(i, words)) : inOrder();
  if (kept.group === 'none') return {rows: found, count: found.length};
  const groups = new Map();
  for (const i of found) {
    const key = groupOf(i);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(i);
  }
  const rows = [];
  for (const name of [...groups.keys()].sort(collator.compare)) {
    const open = !kept.closed.has(`${kept.group}/${name}`);
    rows.push({group: name, size: groups.get(name).length, open});
    if (open) rows.push(...groups.get(name));
  }
  return {rows, count: found.length};
}

// ---- rows: made once, filled again and again ----

function instanceRow() {
  const name = link('', ''), state = badge(''), kind = el('td', {class: 'col-kind'}), cpus = el('td', {class: 'col-cpus number'}), memory = el('td', {class: 'col-memory number'});
  const owner = el('td', {class: 'col-owner'}), started = el('td', {class: 'col-started_at'});
  const texts_ = [name, state, kind, cpus, memory, owner, started].map((node) => node.appendChild(document.createTextNode('')));
  const tr = el('tr', {}, el('td', {class: 'col-name'}, name), el('td', {}, state), kind, cpus, memory, owner, started);
  let shown = null;
  return {tr, group: false, fill: (one) => {
    if (one === shown) return;
    if (!shown || shown.name !== one.name) name.setAttribute('href', `#/instances/${encodeURIComponent(one.name)}`);
    if (!shown || shown.state !== one.state) state.className = `badge state-${one.state}`;
    const values = [one.name, one.state, one.kind === 'vm' ? 'machine' : one.kind, one.cpus === undefined ? '–' : String(one.cpus), bytes(one.memory), one.owner, when(one.started_at)];
    texts_.forEach((node, i) => { if (node.data !== values[i]) node.data = values[i]; });
    shown = one;
  }};
}

function groupRow(toggle) {
  let shown = null;
  const size = el('span', {class: 'hint'});
  const fold = el('button', {type: 'button', class: 'quiet', onclick: () => toggle(shown)});
  return {tr: el('tr', {class: 'group'}, el('td', {colspan: COLUMNS.length}, fold, size)), group: true, fill: (one) => {
    shown = one;
    fold.textContent = `${one.open ? '▾' : '▸'} ${one.group}`;
    fold.setAttribute('aria-expanded', String(one.open));
    size.textContent = ` ${one.size}`;
  }};
}

const importing = () => jobDialog('Import an instance', [{name: 'name', label: 'Name', required: true, hint: 'the new instance\'s name'},
  {name: 'path', label: 'File', required: true, hint: 'that an export made; an absolute path on the daemon\'s host'},
  {name: 'trust', label: 'Also take what names the host\'s files', type: 'checkbox', hint: 'its kernel and shares, for example; only from whom you trust'}],
'Import', (values) => call('POST', '/v1/import', values), (values) => { location.hash = `#/instances/${encodeURIComponent(values.name)}`; });

export function instances() {
  const filter = el('input', {type: 'search', id: 'filter', placeholder: 'for example: web state=running', value: kept.filter, autocomplete: 'off'});
  const group = el('select', {id: 'group'}, Object.entries(GROUPS).map(([v, t]) => el('option', {value: v, selected: v === kept.group}, t)));
  const found = el('span', {class: 'hint', role: 'status'});
  const body = el('tbody', {});
  const heads = COLUMNS.map(([key, label]) => el('th', {scope: 'col', class: `col-${key}`}, el('button', {type: 'button', class: 'sort', onclick: () => {
    kept.sort = kept.sort === key ? `-${key}` : key;
    draw();
  }}, label)));
  const table = el('table', {class: 'list', 'aria-label': 'Instances'}, el('thead', {}, el('tr', {}, heads)), body);
  const scroller = el('div', {class: 'scroller', tabindex: '0', role: 'region', 'aria-label': 'Instances, scrolling'}, table);
  const nothing = el('div', {});
  let rows = [], frame = 0, height = 45, room = 700, stale = true;
  let parts = [], first = 0; // the rows in the document, and which of all the first of them is
  const spare = {true: [], false: []};
  const spacers = [0, 0].map(() => { const cell = el('td', {colspan: COLUMNS.length}); return {cell, tr: el('tr', {class: 'spacer', 'aria-hidden': 'true', hidden: true}, cell)}; });
  fill(body, spacers.map((s) => s.tr));

  const space = (spacer, n) => {
    spacer.tr.hidden = n === 0;
    spacer.cell.style.height = `${n * height}px`;
  };
  const take = (row) => spare[row.group !== undefined].pop() || (row.group !== undefined ? groupRow((shown) => {
    const key = `${kept.group}/${shown.group}`;
    if (shown.open) kept.closed.add(key); else kept.closed.delete(key);
    draw();
  }) : instanceRow());
  const drop = (part) => {
    if (part.tr.contains(document.activeElement)) scroller.focus({preventScroll: true});
    part.tr.remove();
    if (spare[part.group].length < SPARE_MAX) spare[part.group].push(part);
  };
  // The rows in sight and a few around them. Those that stay keep their elements; those that come take those that went.
  const window_ = () => {
    frame = 0;
    const from = Math.max(0, Math.min(Math.floor(scroller.scrollTop / height), rows.length - 1) - AROUND);
    const to = Math.min(rows.length, from + Math.ceil(room / height) + 2 * AROUND);
    const focused = parts.find((part) => part.tr.contains(document.activeElement));
    const focusedRow = focused && focused.row;
    const old = parts, base = first;
    const stays = (i) => i >= base && i < base + old.length ? old[i - base] : null;
    const overlap = from < base + old.length && to > base;
    parts = [];
    for (let i = from; i < to; i++) {
      const row = rows[i], part = overlap ? stays(i) : old[i - from];
      parts.push(part && part.group === (row.group !== undefined) ? part : null);
    }
    const kept_ = new Set(parts);
    for (const part of old) if (!kept_.has(part)) drop(part);
    let behind = spacers[0].tr;
    parts.forEach((part, n) => {
      const one = part || (parts[n] = take(rows[from + n]));
      if (one.tr !== behind.nextSibling) behind.after(one.tr);
      behind = one.tr;
      one.fill(rows[from + n]);
      one.row = rows[from + n];
      one.tr.setAttribute('aria-rowindex', from + n + 2);
    });
    first = from;
    space(spacers[0], from);
    space(spacers[1], rows.length - to);
    if (focusedRow && focused.row !== focusedRow) refocus(focusedRow);
    if (stale && parts.length) measure();
  };
  // The focus stays with what it was on, where that is still in sight.
  const refocus = (row) => {
    const name = row.name ?? row.group;
    const part = parts.find((p) => (p.row.name ?? p.row.group) === name && p.group === (row.group !== undefined));
    (part ? part.tr.querySelector('a, button') : scroller).focus({preventScroll: true});
  };
  const measure = () => {
    const got = parts[0].tr.offsetHeight;
    stale = false;
    room = scroller.clientHeight || room;
    if (got > 10 && got !== height) { height = got; later(); }
  };
  const later = () => { frame = frame || requestAnimationFrame(window_); };
  const draw = () => {
    const result = flat();
    rows = result.rows;
    const total = list('instances').length;
    found.textContent = result.count === total ? `${total} instances` : `${result.count} of ${total} instances`;
    table.setAttribute('aria-rowcount', String(rows.length + 1));
    heads.forEach((head, i) => {
      const key = COLUMNS[i][0];
      if (kept.sort.replace('-', '') === key) head.setAttribute('aria-sort', kept.sort.startsWith('-') ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
    scroller.hidden = rows.length === 0;
    fill(nothing, rows.length ? null : total ? empty('No instance matches the filter.') : empty('No instances yet.', link('#/create', 'Create the first one')));
    later();
  };
  scroller.addEventListener('scroll', later, {passive: true});
  const resized = () => { stale = true; later(); };
  addEventListener('resize', resized);
  filter.addEventListener('input', () => { kept.filter = filter.value; draw(); });
  group.addEventListener('change', () => { kept.group = group.value; draw(); });
  const unwatch = watch('instances', draw);
  load('instances').then(draw).catch(complain);
  load('jobs').catch(() => {});
  const node = el('div', {}, heading('Instances', may('admin') ? button('Import', importing) : null, may('operator') ? el('a', {class: 'button primary', href: '#/create'}, 'Create instance') : null),
    el('div', {class: 'tools'}, el('label', {for: 'filter'}, 'Filter'), filter, el('label', {for: 'group'}, 'Group by'), group, found), scroller, nothing);
  return {title: 'Instances', node, close: () => { unwatch(); removeEventListener('resize', resized); cancelAnimationFrame(frame); }};
}
