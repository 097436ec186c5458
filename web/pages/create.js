// A new instance, in one form: what it is, what it boots or runs, what it has. The job that makes it is shown as it goes on
// (a container's image may have to come from a registry) and can be canceled.
import {at, call} from '../api.js';
import {follow, load} from '../state.js';
import {button, el, fill, form, heading, link, run, say} from '../ui.js';
import {fieldsOf} from './fields.js';
import {progress} from './jobs.js';

const KINDS = {vm: ['Machine', 'an operating system of its own, on virtual hardware'], container: ['Container', 'a program from an image, on the host\'s kernel']};

// Follows a job to its end in `place`; what went wrong is thrown, for the form to show.
export async function watchJob(job, place) {
  const bar = el('span', {}), cancel = button('Cancel', (event) => run(event.target, () => call('POST', at('jobs', job.name, '/cancel'))));
  fill(place, el('p', {class: 'notice', role: 'status'}, link(`#/jobs/${job.name}`, job.type), ' ', bar, ' ', cancel));
  const ended = await follow(job.name, (now) => fill(bar, progress(now)));
  fill(place);
  if (ended.state === 'canceled') throw new Error('it was canceled');
  if (ended.state !== 'done') throw Object.assign(new Error((ended.error || {}).detail || 'it failed'), {hint: (ended.error || {}).hint || '', code: (ended.error || {}).code});
}

export function create(kind = 'vm') {
  kind = Object.hasOwn(KINDS, kind) ? kind : 'vm';
  const kernels = el('datalist', {id: 'kernels'}), initrds = el('datalist', {id: 'initrds'});
  load('images').then((images) => {
    for (const image of images.values()) {
      if (image.kind === 'kernel') kernels.append(el('option', {value: image.path}, image.name));
      if (image.kind === 'initrd') initrds.append(el('option', {value: image.path}, image.name));
    }
  }).catch(() => {});
  const place = el('div', {});
  const fields = fieldsOf(kind, 'new').map(({none, ...field}) => field);
  const node = form([...fields, {name: 'start', label: 'Start it at once', type: 'checkbox', value: true}], 'Create', async (values) => {
    const {start, ...spec} = values;
    if (kind === 'container' && spec.terminal) spec.interactive = true;
    await watchJob(await call('POST', '/v1/instances', {kind, ...spec}), place);
    if (node.isConnected) location.hash = `#/instances/${encodeURIComponent(values.name)}${start ? '/console' : ''}`; // else somebody looks at another page by now
    if (start) await call('POST', at('instances', values.name, '/start')).catch((problem) => say(problem.message, 'bad'));
  });
  const kinds = el('nav', {class: 'kinds', 'aria-label': 'Kind'}, Object.entries(KINDS).map(([key, [label, about]]) =>
    el('a', {href: `#/create/${key}`, 'aria-current': key === kind ? 'page' : null}, el('strong', {}, label), el('span', {class: 'hint'}, about))));
  return {title: 'Create instance', node: el('div', {class: 'narrow'}, el('p', {class: 'crumb'}, link('#/instances', 'Instances')), heading('Create instance'), kinds, kernels, initrds, node, place)};
}
