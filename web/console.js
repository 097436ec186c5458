// A serial console: xterm.js (loaded when the first console opens) on the console's web socket.
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

// Returns {node, close}. Lost connections are made again while the console is open.
export function consoleOf(name) {
  const status = el('span', {role: 'status'}, 'loading');
  const screen = el('div', {class: 'terminal'});
  const node = el('section', {class: 'console', 'aria-label': `console of ${name}`},
    el('div', {class: 'console-bar'}, status, el('span', {class: 'hint'}, 'Ctrl+Shift+M lets the Tab key leave the console'),
      button('Full screen', () => node.requestFullscreen && node.requestFullscreen(), {class: 'quiet'})), screen);
  let term = null, ws = null, closed = false, timer = 0, wait = 500, observer = null, tabLeaves = false;

  const connect = () => {
    if (closed) return;
    const mine = ws = socket(at('instances', name, '/console'));
    mine.binaryType = 'arraybuffer';
    mine.onopen = () => { status.textContent = 'connected'; node.classList.add('attached'); wait = 500; };
    mine.onmessage = (message) => term.write(typeof message.data === 'string' ? message.data : new Uint8Array(message.data));
    mine.onclose = () => {
      if (closed || ws !== mine) return;
      node.classList.remove('attached');
      status.textContent = 'not connected: the instance does not run, or the connection was lost; trying again';
      timer = setTimeout(connect, wait);
      wait = Math.min(wait * 2, 5000);
    };
  };

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
    const encoder = new TextEncoder();
    term.onData((data) => ws && ws.readyState === 1 && ws.send(encoder.encode(data)));
    term.onBinary((data) => ws && ws.readyState === 1 && ws.send(Uint8Array.from(data, (c) => c.charCodeAt(0))));
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
