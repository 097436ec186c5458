// Signing in with a token; one-time links come by app.js.
import {token} from '../api.js';
import {el, form} from '../ui.js';

export function signin(enter, why) {
  return el('main', {class: 'signin', id: 'main'},
    el('img', {src: '/icon.svg', alt: '', width: 56, height: 56}),
    el('h1', {}, 'Fonda'),
    why ? el('p', {class: 'notice', role: 'alert'}, why) : null,
    el('p', {}, 'On this host, the command ', el('code', {}, 'fonda web'), ' opens this page and signs you in.'),
    form([{name: 'token', label: 'Or a token', type: 'password', required: true, hint: 'an administrator makes it: fonda user token NAME'}], 'Sign in', async (values) => {
      token.set(values.token);
      try {
        await enter();
      } catch (problem) {
        token.set('');
        problem.message = problem.status === 401 ? "'token': it is not valid" : problem.message;
        throw problem;
      }
    }));
}
