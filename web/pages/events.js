// Events: the newest of those that are kept, and what happens now.
import {call} from '../api.js';
import {events as live, watch} from '../state.js';
import {complain, el, empty, fill, heading, link, when} from '../ui.js';

const SHOWN = 200;

function subject(event) {
  const [kind, name] = event.subject.split('/');
  return kind === 'instances' || kind === 'jobs' ? link(`#/${kind}/${encodeURIComponent(name)}`, event.subject) : event.subject;
}

export function events() {
  let old = [];
  const body = el('tbody', {});
  const table = el('div', {class: 'wide'}, el('table', {class: 'list'}, el('thead', {}, el('tr', {}, ['When', 'What', 'Of', 'By', 'More'].map((t) => el('th', {scope: 'col'}, t)))), body));
  const nothing = el('div', {});
  const filter = el('input', {type: 'search', id: 'filter', autocomplete: 'off', placeholder: 'for example: failed'});
  const draw = () => {
    const bySeq = new Map([...old, ...live].map((event) => [event.seq, event]));
    const wanted = filter.value.toLowerCase();
    const items = [...bySeq.values()].sort((a, b) => b.seq - a.seq).filter((e) => !wanted || `${e.type} ${e.subject} ${e.who}`.toLowerCase().includes(wanted)).slice(0, SHOWN);
    fill(body, items.map((event) => el('tr', {}, el('td', {}, when(event.time)), el('td', {}, event.type), el('td', {}, subject(event)), el('td', {}, event.who || ''),
      el('td', {class: 'hint'}, event.data ? Object.entries(event.data).filter(([, v]) => typeof v !== 'object').map(([k, v]) => `${k}: ${v}`).join(', ') : ''))));
    table.hidden = !items.length;
    fill(nothing, items.length ? null : empty('No events.'));
  };
  filter.addEventListener('input', draw);
  const unwatch = [watch('events', draw), watch('reconnected', () => read().catch(complain))];
  const read = async () => {
    const {last} = await call('GET', '/v1/events?limit=1');
    old = (await call('GET', `/v1/events?after=${Math.max(0, last - SHOWN)}&limit=${SHOWN}`)).items;
    draw();
  };
  read().catch(complain);
  return {title: 'Events', node: el('div', {}, heading('Events'), el('div', {class: 'tools'}, el('label', {for: 'filter'}, 'Filter'), filter), table, nothing),
    close: () => unwatch.forEach((fn) => fn())};
}
