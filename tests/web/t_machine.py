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
    for name in ('debian', 'copy', 'made'):
        b.go('#/instances/' + name)
        b.click('Delete')
        b.click('Delete', 'dialog')
        check('%s is deleted' % name, b.sees('There is no instance ' + name), b.text()[-300:])
    check('nothing that the policy refuses, no script error', not b.complaints(), b.complaints())
