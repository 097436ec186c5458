// Elements, dialogs, messages, numbers. Texts only ever become text nodes: nothing here makes HTML of anything.

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'class') node.className = value;
    else if (['value', 'checked', 'disabled', 'hidden', 'open', 'indeterminate'].includes(name)) node[name] = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const fill = (node, ...children) => {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};

// ---- numbers and times ----

export function bytes(n) {
  if (n === null || n === undefined || Number.isNaN(n)) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  while (Math.abs(n) >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return `${n >= 100 || i === 0 || Number.isInteger(n) ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

export function count(n) {
  if (n === null || n === undefined || Number.isNaN(n)) return '–';
  const units = ['', 'k', 'M', 'G', 'T'];
  let i = 0;
  while (Math.abs(n) >= 1000 && i < units.length - 1) { n /= 1000; i++; }
  return (n >= 10 && !units[i] || n >= 100 ? Math.round(n) : Math.round(n * 10) / 10) + (units[i] ? `\u00a0${units[i]}` : '');
}

export const percent = (n) => n === null || Number.isNaN(n) ? '–' : `${(n * 100).toFixed(n < 0.0995 ? 1 : 0)} %`;

export function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

const dates = new Intl.DateTimeFormat(undefined, {dateStyle: 'medium', timeStyle: 'medium'}), clocks = new Intl.DateTimeFormat(undefined, {timeStyle: 'medium'});
export const when = (time) => time ? dates.format(new Date(time)) : '–';
export const clock = (time) => clocks.format(new Date(time));

// ---- parts ----

export const badge = (state) => el('span', {class: `badge state-${state}`}, state);
export const button = (label, onclick, more = {}) => el('button', {type: 'button', onclick, ...more}, label);
export const link = (href, ...children) => el('a', {href}, ...children);
export const heading = (title, ...actions) => el('div', {class: 'heading'}, el('h1', {tabindex: '-1'}, title), el('div', {class: 'actions'}, ...actions));
export const empty = (text, ...more) => el('div', {class: 'empty'}, el('p', {}, text), ...more);
export const facts = (...pairs) => el('dl', {class: 'facts'}, pairs.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));

export function say(text, kind = 'info') {
  const box = document.getElementById('messages');
  const note = el('div', {class: `message ${kind}`}, el('span', {}, text), button('Dismiss', () => note.remove(), {class: 'quiet'}));
  box.append(note);
  while (box.children.length > 4) box.firstChild.remove();
  if (kind === 'info') setTimeout(() => note.remove(), 5000);
}

export const complain = (problem) => say(problem.message + (problem.hint ? ` (${problem.hint})` : ''), 'bad');

// Runs something that a button started: the button waits, and a refusal is told.
export async function run(target, work) {
  if (target) target.disabled = true;
  try {
    return await work();
  } catch (problem) {
    complain(problem);
    return undefined;
  } finally {
    if (target) target.disabled = false;
  }
}

export function dialog(title, body, ...buttons) {
  const box = el('dialog', {'aria-labelledby': 'dialog-title'}, el('h2', {id: 'dialog-title'}, title), body, el('div', {class: 'actions end'}, ...buttons));
  box.addEventListener('close', () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

export function confirm(title, text, action) {
  return new Promise((done) => {
    const box = dialog(title, el('p', {}, text), button('Cancel', () => box.close()), button(action, () => { done(true); box.close(); }, {class: 'danger'}));
    box.addEventListener('close', () => done(false));
  });
}

// ---- forms: a refused value is answered at its field ----

let fieldNumber = 0;

// fields: [{name, label, type, hint, value, options, required, rows, parse}]; send gets an object of what was filled in.
export function form(fields, submit, send) {
  const inputs = new Map();
  const general = el('p', {class: 'form-error', role: 'alert', hidden: true});
  const rows = fields.map((field) => {
    if (field.title) return el('h2', {}, field.title);
    const id = `field-${++fieldNumber}`;
    const common = {id, name: field.name, 'aria-describedby': `${id}-hint ${id}-error`, required: field.required, autocomplete: 'off', spellcheck: 'false'};
    let input;
    if (field.options) input = el('select', common, field.options.map((o) => el('option', {value: o, selected: o === field.value}, o)));
    else if (field.rows) input = el('textarea', {...common, rows: field.rows, value: field.value || ''});
    else if (field.type === 'checkbox') input = el('input', {...common, type: 'checkbox', checked: field.value});
    else input = el('input', {...common, type: field.type || 'text', value: field.value === undefined ? '' : String(field.value), list: field.list});
    const error = el('p', {class: 'field-error', id: `${id}-error`, hidden: true});
    inputs.set(field.name, {input, error, field});
    return el('div', {class: field.type === 'checkbox' ? 'field check' : 'field'}, el('label', {for: id}, field.label), input,
      el('p', {class: 'hint', id: `${id}-hint`}, field.hint || ''), error);
  });
  const go = el('button', {type: 'submit', class: 'primary'}, submit);
  const mark = (entry, text) => {
    entry.error.textContent = text;
    entry.error.hidden = !text;
    if (text) entry.input.setAttribute('aria-invalid', 'true');
    else entry.input.removeAttribute('aria-invalid');
  };
  // The field whose value a refusal quotes, where it names none.
  const meant = (message) => [...inputs.values()].find(({input}) => input.type !== 'checkbox' && input.tagName !== 'SELECT' && input.value.trim().length > 1 &&
    message.includes(`'${input.value.trim()}'`));
  const node = el('form', {class: 'form', novalidate: true, onsubmit: async (event) => {
    event.preventDefault();
    general.hidden = true;
    let first = null;
    const values = {};
    for (const [name, entry] of inputs) {
      const {input, field} = entry;
      const raw = field.type === 'checkbox' ? input.checked : input.value.trim();
      mark(entry, field.required && raw === '' ? `${field.label} is needed` : '');
      if (field.required && raw === '') first = first || input;
      if (field.type === 'checkbox') values[name] = raw;
      else if (raw !== '') values[name] = field.parse ? field.parse(raw) : raw;
      else if ('none' in field) values[name] = field.none;
    }
    if (first) { first.focus(); return; }
    go.disabled = true;
    try {
      await send(values);
    } catch (problem) {
      const text = problem.message + (problem.hint ? ` (${problem.hint})` : '');
      const named = [...problem.message.matchAll(/'([a-z_]+)'/g)].map((m) => inputs.get(m[1])).find(Boolean)
        || (problem.code === 'already_exists' && inputs.get('name')) || meant(problem.message);
      if (named) { mark(named, text); named.input.focus(); }
      else { general.textContent = text; general.hidden = false; general.scrollIntoView({block: 'nearest'}); }
    } finally {
      go.disabled = false;
    }
  }}, rows, general, el('div', {class: 'actions'}, go));
  return node;
}

// A terminal's output as text alone: without what terminals are told, and without other control characters.
export const plain = (text) => text.replace(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|\x1b[=>78cDEHMNOZ]|[\x00-\x08\x0b-\x1f\x7f]/g, '');

export const lines = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean);
export const words = (text) => text.split(/[\s,]+/).filter(Boolean);
