"""A real machine through the page: Debian's kernel boots on the console and is typed into; snapshots hold what it was; a clone; the end."""
import os

from browser import ROOT, check, skip
from world import World

BOOT_S = 120  # translated, on a machine that others use too


def guest(build):
    for folder in (os.path.join(build, 'guest'), os.path.join(ROOT, 'build/guest')):
        if os.path.exists(os.path.join(folder, 'vmlinuz')) and os.path.exists(os.path.join(folder, 'initramfs')):
            return folder
    return None


def prompt(b, command, answer, wait=BOOT_S):
    """Types a command on the console, and waits for what it says."""
    b.until('document.querySelector(".console.attached")')
    b.css('.xterm-helper-textarea').send_keys(command + '\n')
    return b.until(lambda b: answer in b.screen(), wait=wait)


def machine(world):
    folder = guest(world.daemon.build)
    if not folder:
        skip('a real machine', 'no guest kernel in build/guest (make guest)')
        return
    world.close()
    world = World(world.daemon.build, world.shots, vmm=os.path.join(world.daemon.build, 'vm/fonda-vmm'))
    try:
        boots(world, folder)
    finally:
        world.close()


def boots(world, folder):
    d = world.daemon
    d.call('POST', '/v1/volumes', {'name': 'data', 'size': '64M', 'format': 'qcow2'})
    b = world.browser()
    b.go('#/create')
    for name, value in (('name', 'debian'), ('kernel', folder + '/vmlinuz'), ('initrds', folder + '/initramfs'), ('append', 'console=ttyS0 panic=-1 quiet'),
                        ('memory', '192M'), ('volumes', 'data')):
        b.type(name, value)
    b.click('Create', 'main form')
    check('a machine boots on the console', b.until(lambda b: 'root@' in b.screen(), wait=BOOT_S), b.screen()[-500:])
    check('typing into it', prompt(b, 'echo $((6*7)) > /tmp/was; echo it is $(cat /tmp/was)', 'it is 42'), b.screen()[-300:])
    world.shot(b, 'machine-console-light')
    b.click('Engine')
    check('its engine counts', b.until('document.querySelectorAll(".engine tbody tr").length > 20 && document.querySelectorAll(".keys .key").length > 4'))
    check('of a second, the page says where it went', b.until('document.querySelector(".slices").offsetWidth > 100 && /%/.test(document.querySelector(".keys").innerText)'))
    world.shot(b, 'machine-engine-light')
    b.click('Snapshots')
    b.click('New snapshot')
    b.type('name', 'before')
    b.type('description', 'as it was')
    b.click('Make snapshot', 'dialog')
    check('a snapshot is made', b.until('!document.querySelector("dialog")', wait=60) and b.until('document.querySelector(".tree")?.innerText.includes("before")'), b.text()[-300:])
    check('with its memory', b.sees('with memory'))
    b.click('Console')
    check('then something changes', prompt(b, 'echo 43 > /tmp/was; echo now $(cat /tmp/was)', 'now 43'))
    b.click('Snapshots')
    b.click('New snapshot')
    b.type('name', 'after')
    b.click('Make snapshot', 'dialog')
    check('another one is under the first', b.until('document.querySelector(".tree .tree")?.innerText.includes("after")', wait=60), b.text()[-300:])
    b.js('document.querySelector("[aria-label=\\"Restore before\\"]").click()')
    b.click('Restore', 'dialog')
    check('restored: it is at the first', b.until('(() => { const n = document.querySelector(".here"); return n && n.parentNode.closest("li")?.innerText.startsWith("before") && !n.parentNode.closest("li").parentNode.closest("li"); })()',
                                                 wait=60) and b.state('running'), b.text()[-300:])
    world.shot(b, 'machine-snapshots-light')
    b.click('Console')
    check('and is what it was', prompt(b, 'echo again $(cat /tmp/was)', 'again 42'), b.screen()[-300:])
    b.click('Save state')
    b.click('Save state', 'dialog')
    check('saved', b.until('document.querySelector(".heading .badge")?.innerText === "saved"', wait=60), b.text()[-200:])
    b.click('Start')
    b.state('running')
    check('and goes on where it was', prompt(b, 'echo goes on $(cat /tmp/was)', 'goes on 42'), b.screen()[-300:])
    b.click('Snapshots')
    b.until('document.querySelector("[aria-label=\\"Clone after\\"]")')
    b.js('document.querySelector("[aria-label=\\"Clone after\\"]").click()')
    b.type('name', 'copy')
    b.click('Clone', 'dialog')
    check('a clone of a snapshot', b.until('!document.querySelector("dialog")', wait=60) and d.call('GET', '/v1/instances/copy')[0] == 200, b.text()[-300:])
    b.js('document.querySelector("[aria-label=\\"Delete after\\"]").click()')
    b.click('Delete', 'dialog')
    check('a snapshot is deleted', b.until('document.querySelector(".tree") && !document.querySelector(".tree").innerText.includes("after")', wait=60))
    b.click('Force stop')
    b.click('Force stop', 'dialog')
    b.state('stopped')
    b.click('Make a template')
    b.type('name', 'base')
    b.click('Make a template', 'dialog')
    check('a template is made of it', b.until('location.hash === "#/templates" && document.querySelector("main tbody")?.innerText.includes("base")', wait=60), b.text()[-300:])
    b.click('New instance')
    b.type('name', 'made')
    b.click('Create', 'dialog')
    check('and an instance of the template', b.until('location.hash === "#/instances/made"', wait=60) and b.sees('made'), b.text()[-300:])
    copies(world, b)
    for name in ('debian', 'copy', 'made', 'restored', 'imported'):
        b.go('#/instances/' + name)
        b.click('Delete')
        b.click('Delete', 'dialog')
        check('%s is deleted' % name, b.sees('There is no instance ' + name), b.text()[-300:])
    b.go('#/backups')
    b.click('Delete')
    b.click('Delete', 'dialog')
    check('a backup outlives its machine, and is deleted', b.sees('No backups yet'), b.text()[-300:])
    check('nothing that the policy refuses, no script error', not b.complaints(), b.complaints())


def gone(b):
    return b.until('!document.querySelector("dialog")', wait=60)


def copies(world, b):
    """Backups, schedules, export and import, of the stopped machine."""
    d = world.daemon
    b.go('#/instances/debian/backups')
    b.click('New backup')
    b.type('name', '-x')
    b.click('Create', 'dialog')
    check('a wrong name of a backup is answered at its field', b.until('document.querySelector("dialog [name=name]").getAttribute("aria-invalid")'), b.text()[-200:])
    b.type('name', 'nightly')
    b.type('keep', '7d')
    b.click('Create', 'dialog')
    check('a backup', gone(b) and b.until('document.querySelector("main tbody")?.innerText.includes("nightly")'), b.text()[-300:])
    kept = d.call('GET', '/v1/backups/nightly')[1]
    check('it is kept for seven days', kept['expires_at'][:10] > kept['created_at'][:10], kept)
    b.click('Verify')
    check('it is verified', b.until('!document.querySelector("main tbody tr").innerText.includes("–")', wait=60), b.text()[-300:])
    b.click('Restore')
    b.type('name', 'restored')
    b.click('Restore', 'dialog')
    check('a new instance from a backup', gone(b) and d.call('GET', '/v1/instances/restored')[1].get('state') == 'stopped', b.text()[-300:])
    b.click('New schedule')
    b.type('name', 'hourly')
    b.type('cron', 'whenever')
    b.click('Create', 'dialog')
    check('a wrong time is answered at its field', b.until('document.querySelector("dialog [name=cron]").getAttribute("aria-invalid")'), b.text()[-200:])
    b.type('cron', '0 * * * *')
    b.type('keep_last', '3')
    b.click('Create', 'dialog')
    check('a schedule', gone(b) and b.sees('the last 3') and d.call('GET', '/v1/schedules/hourly')[1].get('instance') == 'debian', b.text()[-300:])
    world.shot(b, 'machine-backups-light')
    b.click('Turn off')
    check('a schedule is turned off', b.sees('it is off') and d.call('GET', '/v1/schedules/hourly')[1]['enabled'] is False)
    b.go('#/schedules')
    b.click('Delete')
    b.click('Delete', 'dialog')
    check('a schedule is deleted', b.sees('No schedules yet'))
    b.go('#/instances/debian/backups')
    b.click('Export to a file')
    path = os.path.join(d.dir, 'exported.tar')
    b.type('path', path)
    b.click('Export', 'dialog')
    check('export', gone(b) and os.path.exists(path), b.text()[-300:])
    b.go('#/instances')
    b.click('Import')
    b.type('name', 'imported')
    b.type('path', '/nowhere.tar')
    b.click('Import', 'dialog')
    check('a file that is not there is answered at its field', b.until('document.querySelector("dialog [name=path]").getAttribute("aria-invalid")'), b.text()[-300:])
    b.type('path', path)
    b.click('Import', 'dialog')
    check('import', b.until('location.hash === "#/instances/imported"', wait=60) and b.state('stopped'), b.text()[-300:])
