"""Accessibility (axe-core, light and dark), the keyboard, and pictures of every page."""
import os

from browser import ROOT, check

PAGES = ['instances', 'instances/web-1', 'instances/web-1/console', 'instances/web-1/engine', 'instances/web-1/log', 'instances/mail/snapshots', 'instances/mail/backups',
         'instances/web-1/settings',
         'create', 'create/container', 'volumes', 'networks', 'images', 'templates', 'backups', 'schedules', 'users', 'jobs', 'jobs/j1', 'events', 'host']


def serious(b):
    found = b.driver.execute_async_script('const done = arguments[arguments.length - 1]; axe.run(document, {resultTypes: ["violations"]}).then(done, '
                                          '(e) => done({violations: [{impact: "critical", id: String(e), nodes: []}]}))')
    return [(v['id'], [n['target'] for n in v['nodes']][:3]) for v in found['violations'] if v['impact'] in ('serious', 'critical')]


def access(world):
    world.daemon.call('POST', '/v1/volumes', {'name': 'letters', 'size': '1M', 'format': 'qcow2'})
    for name, group in (('web-1', 'shop'), ('web-2', 'shop'), ('db', 'shop'), ('mail', 'office'), ('build', 'office')):
        world.make(name, start=name != 'mail', volumes=['letters'] if name == 'mail' else [], labels={'group': group}, description='the shop\'s front' if name == 'web-1' else '')
    d = world.daemon
    d.call('POST', '/v1/instances/web-2/pause?wait=20')
    for name, parent in (('fresh', ''), ('tuned', 'fresh')):
        d.call('POST', '/v1/instances/mail/snapshots?wait=20', {'name': name, 'description': parent and 'after ' + parent})
    d.call('POST', '/v1/instances/mail/backups?wait=20', {'name': 'friday'})
    d.call('POST', '/v1/schedules', {'name': 'nightly', 'instance': 'mail', 'cron': '30 3 * * *', 'keep_last': 7})
    d.call('POST', '/v1/templates?wait=20', {'name': 'base', 'instance': 'mail'})
    d.call('POST', '/v1/volumes', {'name': 'data', 'size': '10G', 'description': 'orders'})
    d.call('POST', '/v1/users', {'name': 'alice', 'role': 'operator'})
    d.call('POST', '/v1/networks', {'name': 'lan', 'mode': 'user'})
    d.call('POST', '/v1/images', {'name': 'debian', 'kind': 'kernel', 'path': d.kernel()})
    b = world.browser()
    with open(os.path.join(ROOT, 'tests/web/vendor/axe.min.js'), encoding='utf-8') as f:
        b.js(f.read())
    for dark in (False, True):
        b.scheme(dark)
        word = 'dark' if dark else 'light'
        for name in PAGES:
            b.go('#/' + name)
            b.until('document.querySelector("main h1") && document.querySelectorAll("main *").length > 6 && !document.querySelector("main").innerText.includes("Waiting for")')
            if 'console' in name:
                b.until(lambda b: 'hello' in b.screen())
            found = serious(b)
            check('axe, %s: %s' % (word, name), not found, found)
            world.shot(b, '%s-%s' % (name.replace('/', '-'), word))
    b.go('#/volumes')
    b.click('New volume')
    check('axe: a dialog', not serious(b), serious(b))
    b.keys('\ue00c')
    check('Escape closes it', b.until('!document.querySelector("dialog")'))
    b.size(390, 800)
    for name in PAGES:
        b.go('#/' + name)
        b.until('document.querySelector("main h1") && document.querySelectorAll("main *").length > 6')
        check('phone width: %s does not scroll sideways' % name, b.js('return document.documentElement.scrollWidth <= 390'), b.js('return document.documentElement.scrollWidth'))
        world.shot(b, '%s-phone' % name.replace('/', '-'))
    b.size(1280, 860)
    b.scheme(False)
    for name in PAGES:
        b.go('#/' + name)
        b.until('document.querySelector("main h1") && document.querySelectorAll("main *").length > 6 && !document.querySelector("main").innerText.includes("Waiting for")')
        if 'console' in name:
            b.until(lambda b: 'hello' in b.screen())
        left = unreached(b)
        check('the keyboard reaches everything: ' + name, left == [], left)
    b.go('#/volumes')
    b.until('document.querySelector(".heading button")')
    b.js('document.querySelector(".heading button").focus()')
    b.keys('\ue007')
    check('Enter opens a dialog, with the focus in it', b.until('document.querySelector("dialog")?.contains(document.activeElement)'))
    left = unreached(b)
    check('the keyboard reaches everything in a dialog, and nothing behind it', left == [], left)
    b.keys('\ue00c')
    b.until('!document.querySelector("dialog")')
    check('closed, the focus is where it was', b.until('document.activeElement.innerText === "New volume"'), b.js('return document.activeElement.outerHTML'))
    b.go('#/instances')
    b.until('document.querySelector("td.col-name a")')
    b.js('document.activeElement.blur()')
    b.keys('/')
    check('/ goes to the filter', b.until('document.activeElement.id === "filter"'))


def unreached(b):
    """What of a page the Tab key does not come to; in a dialog, what it comes to besides."""
    b.js('''const within = document.querySelector("dialog") || document.body, all = [...within.querySelectorAll("a[href], button, input, select, textarea, [tabindex='0']")];
        if (all.length < 3) throw Error("nothing to reach");
        window.left = new Set(all.filter((n) => n.offsetParent !== null && !n.disabled && n.tabIndex >= 0 && !n.closest("#messages")));
        window.count = left.size; window.strays = new Set();
        document.addEventListener("focusin", (e) => { left.delete(e.target); if (!within.contains(e.target)) strays.add(e.target); });
        left.delete(document.activeElement);''')
    for _ in range(4):
        if b.js('return document.activeElement.classList.contains("xterm-helper-textarea")'):
            b.keys_held('\ue009\ue008', 'm')
        b.keys('\ue004' * (b.js('return count') // 2 + 8))
        if b.js('return left.size') == 0:
            break
    name = 'n.tagName + " " + (n.innerText || n.name || n.className || n.id)'
    return b.js('return [...left, ...strays].filter((n) => n.isConnected && n !== document.body).map((n) => %s)' % name)
