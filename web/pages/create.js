// A new instance, in one form: what it is, what it boots, what it has.
import {at, call} from '../api.js';
import {load} from '../state.js';
import {el, form, heading, lines, link, say, words} from '../ui.js';
import {labelsOf} from './instance.js';

export function create() {
  const number = (v) => /^\d+$/.test(v) ? Number(v) : v;
  const kernels = el('datalist', {id: 'kernels'}), initrds = el('datalist', {id: 'initrds'});
  load('images').then((images) => {
    for (const image of images.values()) {
      if (image.kind === 'kernel') kernels.append(el('option', {value: image.path}, image.name));
      if (image.kind === 'initrd') initrds.append(el('option', {value: image.path}, image.name));
    }
  }).catch(() => {});
  const node = form([
    {title: 'What it is'},
    {name: 'name', label: 'Name', required: true, hint: 'a letter or digit, then up to 62 letters, digits, "-", "_" and "."'},
    {name: 'description', label: 'Description'},
    {title: 'What it boots'},
    {name: 'kernel', label: 'Kernel', required: true, list: 'kernels', hint: 'an absolute path on the daemon\'s host: a bzImage, or an ELF file'},
    {name: 'initrds', label: 'Initial RAM disks', rows: 2, parse: lines, list: 'initrds', hint: 'absolute paths, one per line'},
    {name: 'append', label: 'Kernel command line', hint: 'for example: console=ttyS0 root=/dev/vda1'},
    {name: 'disks', label: 'Disks', rows: 2, parse: lines, hint: 'files on the host, as "fonda run --disk" takes them, one per line'},
    {title: 'What it has'},
    {name: 'cpus', label: 'CPUs', value: 1, parse: number, hint: '1 to 32'},
    {name: 'memory', label: 'Memory', value: '256M', hint: 'such as 512M or 2G'},
    {name: 'engine', label: 'Engine', options: ['bt', 'kvm'], value: 'bt', hint: 'bt: binary translation, works everywhere; kvm: where the host has it'},
    {name: 'volumes', label: 'Volumes', parse: words, hint: 'names, separated by spaces'},
    {name: 'networks', label: 'Networks', parse: words, value: 'user', hint: 'names; "user" is always there'},
    {name: 'labels', label: 'Labels', rows: 2, parse: labelsOf, hint: 'NAME=TEXT, one per line; the label "group" makes the tree'},
    {name: 'start', label: 'Start it at once', type: 'checkbox', value: true},
  ], 'Create', async (values) => {
    const {start, ...spec} = values;
    await call('POST', '/v1/instances?wait=20', {kind: 'vm', ...spec}).then((job) => {
      if (job.state === 'failed') throw Object.assign(new Error(job.error.detail), {hint: job.error.hint || ''});
    });
    location.hash = `#/instances/${encodeURIComponent(values.name)}${start ? '/console' : ''}`;
    if (start) await call('POST', at('instances', values.name, '/start')).catch((problem) => say(problem.message, 'bad'));
  });
  return {title: 'Create instance', node: el('div', {class: 'narrow'}, el('p', {class: 'crumb'}, link('#/instances', 'Instances')), heading('Create instance'), kernels, initrds, node)};
}
