// What containers have and machines don't: their own input and output, a shell inside, their log as it grows, their processes.
import {at, call, socket} from '../api.js';
import {ATTACH, consoleOf, exec} from '../console.js';
import {button, complain, el, empty, fill, plain} from '../ui.js';

const LOG_TAIL = 1000, LOG_CHARS = 1 << 20; // lines from before; characters that are kept on the page
const up = (instance) => ['running', 'paused'].includes(instance.state);

// A part that is there while the instance runs.
function whileUp(make, text) {
  let one = null;
  const node = el('div', {});
  return {node, update: (instance) => {
    if (up(instance) && !one) { one = make(instance); fill(node, one.node); }
    if (!up(instance) && !one) fill(node, empty(text));
  }, close: () => one && one.close()};
}

export const containerConsole = (name) => whileUp((instance) => {
  const one = consoleOf(name, ATTACH);
  const hint = instance.terminal ? 'What its first program shows from now on; what came before is in its log.'
    : 'It has no terminal: what its first program prints from now on is shown here, and a shell inside is on the next page.';
  return {node: el('div', {}, el('p', {class: 'hint'}, hint), one.node), close: one.close};
}, 'The console is there while the container runs.');

export const shell = (name) => whileUp(() => consoleOf(name, exec(['/bin/sh'])), 'A shell can be had while the container runs.');

// Its log, followed. Bytes that are no text, and what terminals are told, are left out.
export function containerLog(name) {
  const pre = el('pre', {class: 'log', tabindex: '0', role: 'region', 'aria-label': 'Log'}, '');
  const state = el('span', {class: 'hint', role: 'status'}, '');
  let ws = null, timer = 0, closed = false;
  const open = () => {
    if (closed) return;
    const mine = ws = socket(at('instances', name, '/stream'));
    const decoder = new TextDecoder();
    mine.binaryType = 'arraybuffer';
    mine.onopen = () => { pre.textContent = ''; mine.send(JSON.stringify({logs: {follow: true, tail: LOG_TAIL}})); };
    mine.onmessage = (message) => {
      if (typeof message.data === 'string') {
        const said = JSON.parse(message.data);
        if (said.started) state.textContent = 'as it is written';
        if ('exit' in said) state.textContent = 'all of it: the container has ended';
        if (said.error) state.textContent = said.error.detail;
        return;
      }
      const atEnd = pre.scrollTop + pre.clientHeight > pre.scrollHeight - 40;
      pre.append(plain(decoder.decode(new Uint8Array(message.data).subarray(1), {stream: true})));
      while (pre.childNodes.length > 2000 || (pre.childNodes.length > 1 && pre.textContent.length > LOG_CHARS)) pre.firstChild.remove();
      if (atEnd) pre.scrollTop = pre.scrollHeight;
    };
    mine.onclose = () => {
      if (closed || ws !== mine) return;
      if (state.textContent === 'as it is written') { state.textContent = 'connection lost; trying again'; timer = setTimeout(open, 2000); }
    };
  };
  open();
  let was = '';
  return {node: el('div', {}, el('p', {}, state), pre), update: (instance) => {
    if (was && was !== instance.state && instance.state === 'running') { const old = ws; ws = null; old.close(); open(); } // it was started anew
    was = instance.state;
  }, close: () => { closed = true; clearTimeout(timer); if (ws) ws.close(); }};
}

export function processes(name) {
  const place = el('div', {});
  const read = () => call('GET', at('instances', name, '/top')).then(({processes: list}) => fill(place, el('div', {class: 'wide'}, el('table', {class: 'list'},
    el('thead', {}, el('tr', {}, el('th', {scope: 'col', class: 'number'}, 'On the host'), el('th', {scope: 'col'}, 'Command'))),
    el('tbody', {}, list.map((one) => el('tr', {}, el('td', {class: 'number'}, String(one.pid)), el('td', {}, one.command)))))))).catch((problem) => {
    fill(place, empty('Processes are there while the container runs.'));
    if (problem.code !== 'wrong_state') complain(problem);
  });
  read();
  return {node: el('div', {}, place, el('div', {class: 'actions'}, button('Read again', read)))};
}
