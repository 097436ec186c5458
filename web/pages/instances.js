// All instances, as a list or as a tree of groups; live. Only the rows in sight are in the document, so that thousands scroll.
import {load, list, watch} from '../state.js';
import {badge, bytes, complain, el, empty, fill, heading, link, when} from '../ui.js';

const GROUPS = {none: 'no groups', state: 'state', kind: 'kind', owner: 'owner', label: 'label "group"'};
const kept = {filter: '', group: 'none', sort: 'name', closed: new Set(), top: 0};
const COLUMNS = [['name', 'Name'], ['state', 'State'], ['kind', 'Kind'], ['cpus', 'CPUs'], ['memory', 'Memory'], ['owner', 'Owner'], ['started_at', 'Started']];

// Words must all be found; member=text looks in one member or label.
function matches(instance, words) {
  const labels = Object.entries(instance.labels || {});
  const all = [instance.name, instance.state, instance.kind, instance.owner, instance.description, ...labels.map(([k, v]) => `${k}=${v}`)].join(' ').toLowerCase();
  return words.every((word) => {
    const [member, value] = word.split('=');
    if (value !== undefined && member in instance) return String(instance[member]).toLowerCase() === value;
    return all.includes(word);
  });
}

const collator = new Intl.Collator(undefined, {numeric: true});

function groupOf(instance) {
  if (kept.group === 'label') return (instance.labels || {}).group || 'without the label';
  return String(instance[kept.group] || '–');
}

function flat() {
  const words = kept.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const found = list('instances').filter((i) => matches(i, words));
  const key = kept.sort.replace('-', ''), sign = kept.sort.startsWith('-') ? -1 : 1;
  found.sort((a, b) => {
    const x = a[key] ?? '', y = b[key] ?? '';
    return sign * (typeof x === 'number' ? x - y : collator.compare(x, y)) || collator.compare(a.name, b.name);
  });
  if (kept.group === 'none') return {rows: found, count: found.length};
  const groups = new Map();
  for (const i of found) {
    const key = groupOf(i);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(i);
  }
  const rows = [];
  for (const name of [...groups.keys()].sort()) {
    rows.push({group: name, size: groups.get(name).length});
    if (!kept.closed.has(`${kept.group}/${name}`)) rows.push(...groups.get(name));
  }
  return {rows, count: found.length};
}

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
  let rows = [], frame = 0, height = 45;

  const rowOf = (row) => {
    if (row.group !== undefined) {
      const key = `${kept.group}/${row.group}`, open = !kept.closed.has(key);
      return el('tr', {class: 'group'}, el('td', {colspan: COLUMNS.length}, el('button', {type: 'button', class: 'quiet', 'aria-expanded': String(open), onclick: () => {
        if (open) kept.closed.add(key); else kept.closed.delete(key);
        draw();
      }}, `${open ? '▾' : '▸'} ${row.group}`), el('span', {class: 'hint'}, ` ${row.size}`)));
    }
    return el('tr', {}, el('td', {class: 'col-name'}, link(`#/instances/${encodeURIComponent(row.name)}`, row.name)), el('td', {}, badge(row.state)),
      el('td', {class: 'col-kind'}, row.kind), el('td', {class: 'col-cpus number'}, String(row.cpus)), el('td', {class: 'col-memory number'}, bytes(row.memory)),
      el('td', {class: 'col-owner'}, row.owner), el('td', {class: 'col-started_at'}, when(row.started_at)));
  };
  const window_ = () => {
    frame = 0;
    const first = Math.max(0, Math.floor(scroller.scrollTop / height) - 8);
    const last = Math.min(rows.length, first + Math.ceil((scroller.clientHeight || 700) / height) + 16);
    const focused = document.activeElement && body.contains(document.activeElement) ? document.activeElement.textContent : null;
    const spacer = (n) => {
      const cell = el('td', {colspan: COLUMNS.length});
      cell.style.height = `${n * height}px`;
      return n > 0 ? el('tr', {class: 'spacer', 'aria-hidden': 'true'}, cell) : null;
    };
    fill(body, spacer(first), rows.slice(first, last).map(rowOf), spacer(rows.length - last));
    const sample = body.querySelector('tr:not(.spacer)');
    if (sample && sample.offsetHeight > 10) height = sample.offsetHeight;
    if (focused) [...body.querySelectorAll('a, button')].find((node) => node.textContent === focused)?.focus({preventScroll: true});
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
  addEventListener('resize', later);
  filter.addEventListener('input', () => { kept.filter = filter.value; draw(); });
  group.addEventListener('change', () => { kept.group = group.value; draw(); });
  const unwatch = watch('instances', draw);
  load('instances').then(draw).catch(complain);
  load('jobs').catch(() => {});
  const node = el('div', {}, heading('Instances', el('a', {class: 'button primary', href: '#/create'}, 'Create instance')),
    el('div', {class: 'tools'}, el('label', {for: 'filter'}, 'Filter'), filter, el('label', {for: 'group'}, 'Group by'), group, found), scroller, nothing);
  return {title: 'Instances', node, close: () => { unwatch(); removeEventListener('resize', later); cancelAnimationFrame(frame); }};
}
