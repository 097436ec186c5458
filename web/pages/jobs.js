// Jobs: what goes on, with progress, log and cancel, as it is pushed; and what ended.
import {at, call} from '../api.js';
import {list, load, watch} from '../state.js';
import {badge, button, bytes, complain, duration, el, empty, fill, heading, link, run, when} from '../ui.js';

const isOpen = (job) => job.state === 'queued' || job.state === 'running';

export function progress(job) {
  if (!isOpen(job)) return job.error ? el('span', {class: 'bad-text'}, job.error.detail) : '';
  const bar = job.bytes ? el('progress', {max: job.bytes, value: job.bytes_done, 'aria-label': `progress of ${job.name}`})
    : job.steps ? el('progress', {max: job.steps, value: job.steps_done, 'aria-label': `progress of ${job.name}`}) : null;
  return [bar, el('span', {class: 'hint'}, ` ${job.step || ''}${job.bytes ? ` ${bytes(job.bytes_done)} of ${bytes(job.bytes)}` : ''}`)];
}

function target(job) {
  const [kind, name] = job.target.split('/');
  return kind === 'instances' ? link(`#/instances/${encodeURIComponent(name)}`, name) : name;
}

const took = (job) => job.started_at ? duration(new Date(job.ended_at || Date.now()) - new Date(job.started_at)) : '–';

export function jobs(name) {
  const place = el('div', {});
  let waiting = 0;
  const draw = () => {
    waiting = 0;
    if (name) { fill(place, detail(list('jobs').find((job) => job.name === name))); return; }
    const items = list('jobs').sort((a, b) => b.number - a.number).slice(0, 200);
    fill(place, items.length ? el('div', {class: 'wide'}, el('table', {class: 'list cards'}, el('thead', {}, el('tr', {}, ['Job', 'What', 'Of', 'State', 'Progress', 'By', 'Began', 'Took', 'Actions'].map((t) => el('th', {scope: 'col'}, t)))),
      el('tbody', {}, items.map((job) => el('tr', {}, el('th', {scope: 'row'}, link(`#/jobs/${job.name}`, job.name)), el('td', {'data-label': 'What'}, job.type), el('td', {'data-label': 'Of'}, target(job)), el('td', {'data-label': 'State'}, badge(job.state)),
        el('td', {'data-label': 'Progress'}, progress(job)), el('td', {'data-label': 'By'}, job.owner || ''), el('td', {'data-label': 'Began'}, when(job.started_at)), el('td', {'data-label': 'Took'}, took(job)), el('td', {}, isOpen(job) ? cancel(job) : ''))))))
      : empty('No jobs yet.'));
  };
  const cancel = (job) => button('Cancel', (event) => run(event.target, () => call('POST', at('jobs', job.name, '/cancel'))), {'aria-label': `Cancel ${job.name}`});
  const detail = (job) => job ? [
    el('p', {}, badge(job.state), ' ', job.type, ' of ', target(job)), el('p', {}, progress(job)), job.error && job.error.hint ? el('p', {class: 'notice'}, job.error.hint) : null,
    el('p', {class: 'hint'}, `${job.owner || ''} · ${when(job.created_at)} · ${took(job)}`),
    el('h2', {}, 'Log'), el('pre', {class: 'log', tabindex: '0', role: 'region', 'aria-label': 'Log'}, (job.log || []).join('\n') || 'nothing'), isOpen(job) ? el('div', {class: 'actions'}, cancel(job)) : null,
  ] : empty(`There is no job ${name}, or it is older than those that are kept.`);
  const unwatch = watch('jobs', () => { waiting = waiting || requestAnimationFrame(draw); });
  load('jobs').then(draw).catch(complain);
  return {title: name || 'Jobs', node: el('div', {}, name ? el('p', {class: 'crumb'}, link('#/jobs', 'Jobs')) : null, heading(name || 'Jobs'), place),
    close: () => { unwatch(); cancelAnimationFrame(waiting); }};
}
