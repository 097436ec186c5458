"""A daemon, browsers that are signed in, and what the parts of the suite share."""
import os

from browser import Browser, Daemon

EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


class World:
    def __init__(self, build, shots, vmm=None):
        self.daemon = Daemon(build, vmm=vmm)
        self.daemon.env['FONDA_IMAGE_STORE'] = os.path.join(self.daemon.dir, 'images')
        self.daemon.start()
        self.shots = shots
        self.browsers = []

    def link(self):
        done = self.daemon.cli('web', '--no-open')
        return done.stdout.strip()

    def browser(self, sign_in=True, **more):
        one = Browser(self.daemon.dir, **more)
        self.browsers.append(one)
        if sign_in:
            one.open(self.link())
            one.until('document.querySelector(".live.up")')
        return one

    def make(self, name, start=True, **more):
        self.daemon.call('POST', '/v1/instances?wait=20', {'name': name, 'kernel': self.daemon.kernel(), 'memory': '512M', 'networks': ['user'], **more})
        if start:
            self.daemon.call('POST', '/v1/instances/%s/start?wait=20' % name)

    def shot(self, browser, name):
        browser.shot(os.path.join(self.shots, name + '.png'))

    def close(self):
        for browser in self.browsers:
            browser.close()
        self.browsers = []
        self.daemon.close()
