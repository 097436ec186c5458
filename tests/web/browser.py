"""A browser (Debian's Chromium by its own driver) for the tests of the web page."""
import json
import os
import shutil
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, 'tests/daemon'))
from lib import Daemon, check, finish, skip  # noqa: E402,F401

WAIT = 20  # seconds, for anything that comes by itself


def missing():
    """Why there is no browser here; None: there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return 'python3-selenium is not installed (tools/install-deps test)'
    for program in ('chromium', 'chromedriver'):
        if not shutil.which(program):
            return '%s is not installed (tools/install-deps test)' % program
    return None


class Browser:
    def __init__(self, directory, dark=False, width=1280, height=860, trace=''):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which('chromium')
        for argument in ('--headless=new', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
                         '--disable-component-update', '--disable-sync', '--lang=en', '--window-size=%d,%d' % (width, height)):
            options.add_argument(argument)
        if os.geteuid() == 0:
            options.add_argument('--no-sandbox')  # Chromium's own needs a user that is not root
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL', **({'performance': 'ALL'} if trace else {})})
        if trace:  # categories of Chromium's tracing, read by traced()
            options.add_experimental_option('perfLoggingPrefs', {'enableNetwork': False, 'enablePage': False, 'traceCategories': trace})
        self.driver = webdriver.Chrome(service=Service(shutil.which('chromedriver'), log_path=os.path.join(directory, 'driver.log')), options=options)
        self.driver.set_script_timeout(60)
        self.scheme(dark)

    def scheme(self, dark):
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]})

    def size(self, width, height):
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600})

    def open(self, url):
        self.driver.get(url)

    def go(self, fragment):
        self.driver.execute_script('location.hash = arguments[0]', fragment)

    def js(self, code, *args):
        return self.driver.execute_script(code, *args)

    def text(self):
        return self.js('return document.body.innerText')

    def until(self, what, *args, wait=WAIT):
        """Waits until a function of self, or JavaScript, says something true; returns it, or None."""
        end = time.monotonic() + wait
        while True:
            try:
                got = what(self) if callable(what) else self.js('return ' + what, *args)
            except Exception as problem:  # the page changes under our hands
                got = None
                if time.monotonic() > end:
                    print('# ' + str(problem).split('\n')[0], flush=True)
            if got or time.monotonic() > end:
                return got
            time.sleep(0.05)

    def sees(self, text, wait=WAIT):
        return self.until('document.body.innerText.includes(arguments[0])', text, wait=wait)

    def css(self, selector):
        from selenium.webdriver.common.by import By
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, label, within='body'):
        """Presses the button or link with this text, as soon as it is there; once more where the page drew it anew meanwhile."""
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
        for again in (True, True, False):
            found = self.until('[...(document.querySelector(arguments[1]) || document.createElement("p")).querySelectorAll("button, a")].find((n) => n.innerText.trim() === arguments[0] && '
                               'n.offsetParent !== null && !n.disabled)', label, within)
            if not found:
                raise AssertionError('there is no button or link "%s"' % label)
            try:
                found.click()
                return
            except (StaleElementReferenceException, ElementClickInterceptedException):
                if not again:
                    raise
                time.sleep(0.2)

    def type(self, name, text):
        """Fills a field; a box is ticked by True, and not by False."""
        field = self.until('document.querySelector(`[name="${arguments[0]}"]`)', name)
        if isinstance(text, bool):
            if self.js('return arguments[0].checked', field) != text:
                field.click()
            return
        if field.tag_name != 'select':
            field.clear()
        field.send_keys(text)

    def state(self, state):
        return self.until('document.querySelector(".heading .badge") && document.querySelector(".heading .badge").innerText === arguments[0]', state)

    def screen(self):
        """What the console shows."""
        return self.js('return [...document.querySelectorAll(".xterm-rows > div")].map((row) => row.textContent.replace(/\\u00a0/g, " ")).join("\\n")')

    def keys(self, text):
        from selenium.webdriver.common.action_chains import ActionChains
        ActionChains(self.driver).send_keys(text).perform()

    def keys_held(self, held, key):
        from selenium.webdriver.common.action_chains import ActionChains
        chain = ActionChains(self.driver)
        for one in held:
            chain = chain.key_down(one)
        chain = chain.send_keys(key)
        for one in held:
            chain = chain.key_up(one)
        chain.perform()

    def shot(self, path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.driver.save_screenshot(path)

    def complaints(self):
        """What the browser's console said that is no plain refusal of a request."""
        return [entry['message'] for entry in self.driver.get_log('browser')
                if entry['level'] == 'SEVERE' and 'Failed to load resource' not in entry['message'] and 'WebSocket connection' not in entry['message']]

    def traced(self):
        """The trace's events since the last call."""
        log = self.driver.get_log('performance') + self.driver.get_log('performance')  # the driver hands over at every other call
        messages = (json.loads(entry['message'])['message'] for entry in log)
        return [m['params'] for m in messages if m['method'] == 'Tracing.dataCollected']

    def close(self):
        self.driver.quit()
