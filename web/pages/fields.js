// What can be said of an instance when it is created and when it is changed: the fields of both forms, for each kind.
// A field has `show`, what an instance's member is as text, and `none`, what stands for an empty text in a change.
import {may} from '../app.js';
import {lines, words} from '../ui.js';

const number = (v) => /^\d+$/.test(v) ? Number(v) : v;
const inMiB = (v) => v === undefined || v === null ? '' : v % 1048576 === 0 ? `${v / 1048576}M` : String(v);
const byLine = {rows: 2, parse: lines, show: (v) => (v || []).join('\n'), none: []};

export function labelsOf(value) {
  return Object.fromEntries(lines(value).map((line) => { const i = line.indexOf('='); return i < 0 ? [line, ''] : [line.slice(0, i).trim(), line.slice(i + 1).trim()]; }));
}

// A command line as words, with '...' and "..." around those that have spaces; and back.
export function split(text) {
  const out = [];
  for (const [word] of text.matchAll(/(?:[^\s"']+|"(?:[^"\\]|\\.)*"|'[^']*')+/g)) {
    out.push(word.replace(/"((?:[^"\\]|\\.)*)"|'([^']*)'/g, (_, a, b) => a !== undefined ? a.replace(/\\(["\\])/g, '$1') : b));
  }
  return out;
}
const join = (list) => (list || []).map((word) => /^[^\s"']+$/.test(word) ? word : `"${word.replace(/["\\]/g, '\\$&')}"`).join(' ');

export const NAME = {name: 'name', label: 'Name', required: true, hint: 'a letter or digit, then up to 62 letters, digits, "-", "_" and "."'};
const DESCRIPTION = {name: 'description', label: 'Description', none: ''};
const LABELS = {name: 'labels', label: 'Labels', rows: 2, parse: labelsOf, show: (v) => Object.entries(v || {}).map(([k, t]) => `${k}=${t}`).join('\n'),
  hint: 'NAME=TEXT, one per line; the label "group" makes the tree'};
const LIFE = [
  {name: 'restart_policy', label: 'When it ends by itself', options: ['never', 'on-failure', 'always'], value: 'never', hint: 'whether it is started again'},
  {name: 'stop_timeout', label: 'Stop timeout', value: 30, parse: number, hint: 'seconds from being asked to end until it is ended by force'},
  {name: 'autostart', label: 'Start with the daemon', type: 'checkbox'},
];
const host = (field) => may('admin') ? [field] : []; // members that name what is the host's own are for administrators

// new: only when it is created; later: only in its settings.
export function fieldsOf(kind, use) {
  const vm = () => [
    {title: 'What it boots'},
    ...host({name: 'kernel', label: 'Kernel', required: use === 'new', list: 'kernels', hint: 'an absolute path on the daemon\'s host: a bzImage, or an ELF file'}),
    ...host({name: 'initrds', label: 'Initial RAM disks', list: 'initrds', hint: 'absolute paths, one per line', ...byLine}),
    {name: 'append', label: 'Kernel command line', hint: 'for example: console=ttyS0 root=/dev/vda1', none: null},
    ...host({name: 'disks', label: 'Disks', hint: 'files on the host, as "fonda run --disk" takes them, one per line', ...byLine}),
    {title: 'What it has'},
    {name: 'cpus', label: 'CPUs', value: 1, parse: number, hint: '1 to 32'},
    {name: 'memory', label: 'Memory', value: '256M', show: inMiB, hint: 'such as 512M or 2G'},
    {name: 'engine', label: 'Engine', options: ['bt', 'kvm'], value: 'bt', hint: 'bt: binary translation, works everywhere; kvm: where the host has it'},
    {name: 'volumes', label: 'Volumes', parse: words, show: (v) => (v || []).join(' '), none: [], hint: 'names, separated by spaces'},
    {name: 'networks', label: 'Networks', parse: words, show: (v) => (v || []).join(' '), none: [], value: use === 'new' ? 'user' : undefined, hint: 'names; "user" is always there'},
    ...host({name: 'publish', label: 'Ports of the host', hint: 'HOST:GUEST, one per line', ...byLine}),
  ];
  const container = () => [
    {title: 'What it runs'},
    ...use === 'new' ? [{name: 'image', label: 'Image', required: true, hint: 'such as debian:12, or registry.example/shop:2; what is here already is not fetched again'},
      {name: 'pull', label: 'Fetch the image', options: ['missing', 'always', 'never'], value: 'missing', hint: 'missing: if it is not here yet'},
      ...host({name: 'insecure_registry', label: 'The registry may speak plain HTTP', type: 'checkbox'})] : [],
    {name: 'command', label: 'Command', parse: split, show: join, none: null, hint: 'instead of the image\'s own; words with spaces in quotes'},
    {name: 'env', label: 'Environment', hint: 'NAME=VALUE, one per line', ...byLine, rows: 3},
    {name: 'workdir', label: 'Working directory', none: null, hint: 'instead of the image\'s own'},
    {name: 'user', label: 'User', none: null, hint: 'USER[:GROUP], names or numbers, instead of the image\'s own'},
    {name: 'terminal', label: 'A terminal', type: 'checkbox', value: use === 'new', hint: 'for shells and the like: its console takes what is typed'},
    {title: 'What it has'},
    {name: 'cpu_limit', label: 'CPUs', none: null, hint: 'at most, such as 1.5; empty: no limit'},
    {name: 'memory', label: 'Memory', show: inMiB, none: null, hint: 'at most, such as 512M or 2G; empty: no limit'},
    {name: 'pids_limit', label: 'Processes', parse: number, none: null, hint: 'at most; empty: no limit'},
    {name: 'network_mode', label: 'Network', options: ['user', 'none'], value: 'user', hint: 'user: NAT; none: a loopback alone'},
    ...host({name: 'publish', label: 'Ports', hint: 'HOST:CONTAINER, such as 8080:80, one per line', ...byLine}),
    ...host({name: 'mounts', label: 'Folders', hint: 'SOURCE:TARGET[:ro], one per line; a source without / is a folder that outlives containers', ...byLine}),
    {name: 'read_only', label: 'Its root can\'t be written', type: 'checkbox'},
  ];
  return [
    {title: 'What it is'},
    ...use === 'new' ? [NAME] : [], DESCRIPTION,
    ...(kind === 'vm' ? vm : container)(),
    {title: 'How it lives'}, ...LIFE, LABELS,
  ];
}
