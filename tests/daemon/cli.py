"""The command line: commands, formats, exit statuses, starting the daemon."""
import json
import os
import subprocess

from lib import check


def run(daemon):
    """The daemon is not started: commands do."""
    first = [subprocess.Popen([os.path.join(daemon.build, 'cli/fonda'), 'ps', '--quiet'], env=daemon.env, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) for _ in range(4)]
    results = [(p.communicate(timeout=60), p.returncode) for p in first]
    check('commands at once start one daemon', all(r[1] == 0 for r in results), results)
    with open(os.path.join(daemon.state, 'lock'), encoding='ascii') as f:
        pid = int(f.read())
    done = subprocess.run([os.path.join(daemon.build, 'daemon/fondad')], env=daemon.env, capture_output=True, text=True, timeout=30)
    check('a second daemon is refused, by name', done.returncode == 1 and str(pid) in done.stderr, done.stderr)

    def ok(name, *args, has=None):
        done = daemon.cli(*args)
        check(name, done.returncode == 0 and (has is None or has in done.stdout), (done.returncode, done.stdout, done.stderr))
        return done.stdout

    def fails(name, status, text, *args):
        done = daemon.cli(*args)
        check(name, done.returncode == status and text in done.stderr, (done.returncode, done.stderr))

    ok('launch', 'launch', 'web', '--kernel', daemon.kernel(), '--memory', '64M', '--label', 'team=a')
    ok('ps', 'ps', has='running')
    check('ps --format json', json.loads(ok('json', 'ps', '--format', 'json'))[0]['memory'] == 64 << 20)
    ok('ps --format csv', 'ps', '--format', 'csv', has='web,vm,running,1,67108864')
    ok('ps --format yaml', 'ps', '--format', 'yaml', has='team: "a"')
    check('ps --quiet --filter', ok('quiet', 'ps', '--quiet', '--filter', 'labels.team=a and state=running') == 'web\n')
    ok('logs', 'logs', 'web', has='booted')
    ok('stats', 'stats', 'web', has='exits: 42')
    ok('top', 'top', has='web')
    done = subprocess.run([os.path.join(daemon.build, 'cli/fonda'), 'console', 'web'], env=daemon.env, input='typed\n', capture_output=True,
                          text=True, timeout=60)
    check('console', 'hello from the console' in done.stdout and 'typed' in done.stdout, (done.stdout, done.stderr))
    ok('pause', 'pause', 'web')
    ok('resume', 'resume', 'web')
    ok('set', 'set', 'web', 'description=hello', 'autostart=true')
    ok('show', 'show', 'web', has='description: "hello"')
    job = ok('--no-wait', 'stop', 'web', '--no-wait').strip()
    ok('job wait', 'job', 'wait', job)
    ok('job log', 'job', 'log', job, has='asking the guest to end')
    ok('job list', 'job', 'list', has='instance.stop')
    ok('rename', 'rename', 'web', 'www')
    ok('clone', 'clone', 'www', 'copy')
    ok('delete two', 'delete', '--volumes', 'www', 'copy')
    ok('volume create', 'volume', 'create', 'data', '--size', '1G')
    ok('volume list', 'volume', 'list', has='1 GiB')
    ok('volume delete', 'volume', 'delete', 'data')
    ok('user create', 'user', 'create', 'alice', '--role', 'viewer')
    check('user token', ok('token', 'user', 'token', 'alice').startswith('fonda_'))
    ok('event', 'event', has='instance.deleted')
    ok('audit', 'audit', has='/v1/users')
    ok('doctor', 'doctor', has='engine bt')
    ok('version', 'version', has='fondad')
    fails('what is not there: 3', 3, 'no-such', 'show', 'no-such')
    fails('a wrong value: 2', 2, 'memory', 'create', 'x', '--kernel', daemon.kernel(), '--memory', 'much')
    fails('no kernel: 2', 2, 'kernel', 'create', 'x')
    fails('a name that climbs: 2', 2, 'name', 'create', '../x', '--kernel', daemon.kernel())
    fails('an unknown option: 2', 2, '--frobnicate', 'ps', '--frobnicate')
    fails('an unknown command: 2', 2, 'frobnicate', 'frobnicate')
    fails('too few arguments: 2', 2, 'usage', 'rename', 'x')
    fails('a format that is not there: 2', 2, 'xml', 'ps', '--format', 'xml')
    ok('create', 'create', 'x', '--kernel', daemon.kernel())
    fails('taken: 5', 5, 'already', 'create', 'x', '--kernel', daemon.kernel())
    fails('not in this state: 5', 5, 'stopped', 'pause', 'x')
    fails('no daemon there: 6', 6, '127.0.0.1', 'ps', '--host', '127.0.0.1:1')
    fails('a context that is not there: 2', 2, 'nowhere', 'ps', '--context', 'nowhere')
    done = daemon.cli('context', 'add', 'far', '--host', '127.0.0.1:1')
    check('context', done.returncode == 0 and 'far' in daemon.cli('context', 'list').stdout)
    check('contexts are private', os.stat(os.path.join(daemon.dir, 'config/fonda/contexts.json')).st_mode & 0o77 == 0)
    wrong = []
    commands = [line.split()[0] for line in daemon.cli('help').stdout.split('\n') if line.startswith('  ') and line.split()]
    commands = [c for c in commands if not c.startswith('-')]
    for command in commands:
        done = daemon.cli(command, '--help')
        if done.returncode != 0 or 'usage: fonda' not in done.stdout and command != 'serve':
            wrong.append((command, 'help', done.stderr))
        done = daemon.cli('man', command)
        if done.returncode != 0 or '.SH NAME' not in done.stdout:
            wrong.append((command, 'man'))
    check('%d commands have help and a manual page' % len(commands), not wrong and len(commands) > 25, wrong)
    for shell in ('bash', 'zsh', 'fish'):
        ok('completion for ' + shell, 'completion', shell, has='launch')
    script = daemon.cli('completion', 'bash').stdout
    done = subprocess.run(['bash', '-c', script + '\nPATH=%s:$PATH; COMP_WORDS=(fonda start ""); COMP_CWORD=2; _fonda; echo "${COMPREPLY[@]}"'
                           % os.path.join(daemon.build, 'cli')], env=daemon.env, capture_output=True, text=True, timeout=60)
    check('completion knows live names', done.stdout.strip() == 'x', (done.stdout, done.stderr))
    os.kill(pid, 15)
