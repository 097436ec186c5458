// Terminals: xterm.js (loaded when the first one opens) on a machine's serial console, a container's own input and output, or
// a program in a container.
import {at, socket} from './api.js';
import {button, el} from './ui.js';
import {allowStyles} from './xterm_csp.js';

let loading = null;

function script(src) {
  return new Promise((done, failed) => {
    const address = window.trustedTypes ? policy.createScriptURL(src) : src;
    const node = el('script');
    node.src = address;
    node.onload = done;
    node.onerror = () => failed(new Error(`cannot load ${src}`));
    document.head.append(node);
  });
}

// The only addresses that may become scripts.
const policy = window.trustedTypes && trustedTypes.createPolicy('fonda-console', {
  createScriptURL: (src) => {
    if (!src.startsWith('/vendor/xterm/')) throw new TypeError(src);
    return src;
  },
});

function load() {
  if (!loading) {
    allowStyles();
    document.head.append(el('link', {rel: 'stylesheet', href: '/vendor/xterm/xterm.css'}));
    loading = script('/vendor/xterm/xterm.js').then(() => script('/vendor/xterm/addon-fit.js')).catch((e) => { loading = null; throw e; });
  }
  return loading;
}

const encoder = new TextEncoder();

// How bytes and sizes go over the web socket, for each kind of stream.
const RAW = {path: '/console', open: () => {}, read: (data, write) => write(data)};
const STREAM = (request) => ({path: '/stream', open: (ws) => ws.send(JSON.stringify(request)),
  read: (data, write) => write(data.subarray(1)), size: (rows, columns) => JSON.stringify({resize: {rows, columns}})}); // the first byte: output or errors
export const SERIAL = {wire: RAW, again: true, hint: 'the instance does not run, or the connection was lost'};
export const ATTACH = {wire: STREAM({attach: {no_input: false}}), again: true, hint: 'the container does not run, or the connection was lost'};
export const exec = (command) => ({wire: STREAM({exec: {command, terminal: true, env: ['TERM=xterm-256color']}}), again: false, hint: 'the connection was lost'});

// Returns {node, close}. With `again`, lost connections are made again while it is open; else a button does.
export function consoleOf(name, how = SERIAL) {
  const status = el('span', {role: 'status'}, 'loading');
  const screen = el('div', {class: 'terminal'});
  const anew = button('Start again', () => { anew.hidden = true; term.reset(); connect(); }, {hidden: true});
  const node = el('section', {class: 'console', 'aria-label': `console of ${name}`},
    el('div', {class: 'console-bar'}, status, anew, el('span', {class: 'hint'}, 'Ctrl+Shift+M lets the Tab key leave the console'),
      button('Full screen', () => node.requestFullscreen && node.requestFullscreen(), {class: 'quiet'})), screen);
  let term = null, ws = null, closed = false, timer = 0, wait = 500, observer = null, tabLeaves = false, ended = '';

  const connect = () => {
    if (closed) return;
    const mine = ws = socket(at('instances', name, how.wire.path));
    mine.binaryType = 'arraybuffer';
    ended = '';
    mine.onopen = () => {
      how.wire.open(mine);
      if (how.wire === RAW) live();
    };
    mine.onmessage = (message) => {
      if (typeof message.data !== 'string') how.wire.read(new Uint8Array(message.data), (bytes) => term.write(bytes));
      else if (how.wire === RAW) term.write(message.data);
      else told(JSON.parse(message.data));
    };
    mine.onclose = () => {
      if (closed || ws !== mine) return;
      node.classList.remove('attached');
      if (!how.again) {
        status.textContent = ended || how.hint;
        anew.hidden = false;
        return;
      }
      status.textContent = `not connected: ${ended || how.hint}; trying again`;
      timer = setTimeout(connect, wait);
      wait = Math.min(wait * 2, 5000);
    };
  };
  const live = () => {
    status.textContent = 'connected';
    node.classList.add('attached');
    wait = 500;
    resized();
  };
  // What a stream says besides bytes.
  const told = (message) => {
    if (message.started) {
      term.options.convertEol = !message.started.terminal;
      live();
    }
    if ('exit' in message) ended = `it ended with status ${message.exit}`;
    if (message.error) ended = message.error.detail + (message.error.hint ? ` (${message.error.hint})` : '');
  };
  const resized = () => { if (how.wire.size && ws && ws.readyState === 1) ws.send(how.wire.size(term.rows, term.cols)); };

  load().then(() => {
    if (closed) return;
    const style = getComputedStyle(document.documentElement);
    term = new window.Terminal({
      cursorBlink: false, scrollback: 5000, fontSize: 14, screenReaderMode: false, allowProposedApi: false, linkHandler: {activate: () => {}},
      fontFamily: 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace',
      theme: {background: style.getPropertyValue('--terminal').trim(), foreground: '#e6e6e6', cursor: '#9ecbff'},
    });
    const fit = new window.FitAddon.FitAddon();
    term.loadAddon(fit);
    term.open(screen);
    fit.fit();
    observer = new ResizeObserver(() => fit.fit());
    observer.observe(screen);
    const send = (bytes) => ws && ws.readyState === 1 && ws.send(bytes);
    term.onData((data) => send(encoder.encode(data)));
    term.onBinary((data) => send(Uint8Array.from(data, (c) => c.charCodeAt(0))));
    term.onResize(resized);
    term.attachCustomKeyEventHandler((event) => {
      if (event.type === 'keydown' && event.ctrlKey && event.shiftKey && event.code === 'KeyM') {
        tabLeaves = !tabLeaves;
        status.textContent = tabLeaves ? 'Tab leaves the console' : 'Tab goes to the console';
        return false;
      }
      return !(event.key === 'Tab' && tabLeaves);
    });
    term.focus();
    connect();
  }).catch((error) => { status.textContent = error.message; });

  return {node, close: () => {
    closed = true;
    clearTimeout(timer);
    if (observer) observer.disconnect();
    if (ws) ws.close();
    if (term) term.dispose();
  }};
}
