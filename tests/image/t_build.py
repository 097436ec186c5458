"""build, compared with buildah where both have to agree."""
import json
import os

from lib import Skip, check, equal, need, same_tree, test

FILE = r'''# syntax=docker/dockerfile:1
ARG BASE=base:1
FROM ${BASE} AS build
ARG WHO=world
ENV GREETING="hello $WHO" OLD=${NONE:-default} ALT=${WHO:+set}
WORKDIR /work
RUN echo "$GREETING $WHO" > greeting && \
    # a comment in between
    id -u > uid
RUN ["/bin/sh", "-c", "echo json > json; ln -s json link; ln json hard; chmod 4755 uid"]
RUN rm /etc/passwd.link && rm -r /home && mkdir /home && touch /home/new

FROM unused AS never
RUN false

FROM base:1
COPY --from=build /work/ /app/
COPY . /ctx/
COPY --chown=app:staff --chmod=640 a.txt sub/*.txt /data/
ADD archive.tar.gz /unpacked/
USER app
RUN id -u > /tmp/uid; id -g >> /tmp/uid
LABEL a=b "c d"="e f"
EXPOSE 80 53/udp
VOLUME ["/data"]
HEALTHCHECK --interval=1m30s --retries=3 CMD ["true"]
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/sh", "-c"]
CMD cat /app/greeting
'''


def context(box, text=FILE):
    ctx = box.path('ctx')
    os.makedirs(ctx + '/sub', exist_ok=True)
    for name, content in (('a.txt', 'a'), ('sub/b.txt', 'b'), ('sub/c.log', 'c'), ('skip.log', 'no'), ('keep.log', 'yes'),
                          ('.dockerignore', '**/*.log\n!keep.log\narchive*\n!archive.tar.gz\n'), ('Containerfile', text)):
        with open(os.path.join(ctx, name), 'w') as f:
            f.write(content)
    if not os.path.exists(ctx + '/archive.tar.gz'):
        box.sh('tar', '--owner=0', '--group=0', '-C', ctx, '-czf', ctx + '/archive.tar.gz', 'a.txt', 'sub')
    return ctx


@test
def build_like_buildah(box):
    """a Containerfile gives the tree and configuration that buildah makes of it"""
    need('buildah', 'skopeo')
    box.base()
    ctx = context(box)
    r = box.image('build', '-t', 'built:1', ctx)
    check('RUN false' not in r.err, 'a stage that nobody needs ran')
    mine = box.mount('m', 'built:1')
    box.image('save', 'base:1', '--output', box.path('base.oci'))
    buildah = ['buildah', '--root', box.path('bs'), '--runroot', box.path('br'), '--storage-driver', 'vfs']
    env = {'BUILDAH_ISOLATION': 'chroot', 'BUILDAH_FORMAT': 'oci'}
    if box.sh(*buildah, 'pull', 'oci-archive:' + box.path('base.oci'), ok=False, env=env).status != 0:
        raise Skip('buildah cannot work here')
    box.sh(*buildah, 'bud', '--pull-never', '-t', 'theirs', '-f', ctx + '/Containerfile', ctx, env=env, timeout=120)
    name = box.sh(*buildah, 'from', '--pull-never', 'theirs', env=env).out.strip()
    theirs = box.sh(*buildah, 'mount', name, env=env).out.strip()
    for name in ('hostname', 'hosts', 'resolv.conf'):  # where buildah mounted its own
        if os.path.exists(theirs + '/etc/' + name) and os.path.getsize(theirs + '/etc/' + name) == 0:
            os.unlink(theirs + '/etc/' + name)
    for folder in ('app', 'ctx', 'data', 'unpacked', 'etc', 'home'):
        same_tree(os.path.join(theirs, folder), os.path.join(mine, folder), folder)
    with open(mine + '/tmp/uid') as f:
        equal(f.read(), '1000\n1001\n', 'USER')
    a = json.loads(box.image('inspect', 'built:1').out)['config']['config']
    b = json.loads(box.sh(*buildah, 'inspect', '--type', 'image', 'theirs', env=env).out)['OCIv1']['config']
    for key in ('User', 'ExposedPorts', 'Entrypoint', 'Cmd', 'StopSignal', 'Volumes'):
        equal(a.get(key), b.get(key), key)
    for key, value in a['Labels'].items():
        equal(b['Labels'].get(key), value, key)
    equal(a['Healthcheck'], {'Test': ['CMD', 'true'], 'Interval': 90000000000, 'Retries': 3}, 'health check')


@test
def build_cache(box):
    """the second build runs nothing; a changed file or argument runs what depends on it"""
    box.base()
    ctx = context(box, 'FROM base:1\nARG V=1\nRUN echo $V > /v\nCOPY a.txt /a.txt\nRUN cat /a.txt > /copy\n')
    first = box.image('build', '-t', 'c:1', ctx).out
    again = box.image('build', '-t', 'c:1', ctx)
    equal((again.out, again.err.count('from the cache')), (first, 3), 'second build')
    os.utime(ctx + '/a.txt', (1, 1))
    equal(box.image('build', '-t', 'c:1', ctx).err.count('from the cache'), 3, 'other time')
    with open(ctx + '/a.txt', 'w') as f:
        f.write('new')
    equal(box.image('build', '-t', 'c:2', ctx).err.count('from the cache'), 1, 'other file')
    with open(box.mount('x', 'c:2') + '/copy') as f:
        equal(f.read(), 'new')
    equal(box.image('build', '-t', 'c:3', '--build-arg', 'V=2', ctx).err.count('from the cache'), 0, 'other argument')
    equal(box.image('build', '-t', 'c:4', '--no-cache', ctx).err.count('from the cache'), 0, '--no-cache')


@test
def build_fallback(box):
    """without overlayfs the result is the same tree"""
    box.base()
    ctx = context(box)
    box.image('build', '-t', 'o:1', ctx)
    box.image('build', '-t', 'f:1', '--no-cache', ctx, env={'FONDA_IMAGE_FORCE': 'no-overlay,no-reflink'})
    same_tree(box.mount('o', 'o:1'), box.mount('f', 'f:1'), 'overlay and copy')


@test
def build_odd(box):
    """here documents, escape directive, scratch, target, and links that lead out of the root"""
    box.base()
    ctx = context(box, '# escape=`\nFROM base:1 AS one\nRUN <<EOF\necho "$((1+1))" > /two\nEOF\nENV N=v\nCOPY <<EOF <<"RAW" /docs/\n'
                       "N is '$N'\nEOF\nN is $N\nRAW\nRUN ln -s /../../../tmp /out && `\n mkdir -p /tmp\nCOPY a.txt /out/a\n"
                       'FROM scratch AS two\nCOPY --from=one /docs /docs\nFROM nowhere.invalid/x AS three\nRUN false\n')
    box.image('build', '-t', 'one:1', '--target', 'one', ctx)
    box.image('build', '-t', 'two:1', '--target', 'two', ctx)
    one, two = box.mount('1', 'one:1'), box.mount('2', 'two:1')
    for path, text in ((one + '/two', '2\n'), (two + '/docs/EOF', "N is 'v'\n"), (two + '/docs/RAW', 'N is $N\n'), (one + '/tmp/a', 'a')):
        with open(path) as f:
            equal(f.read(), text, path)
    check(not os.path.exists('/tmp/a'), 'written outside of the root')
    equal(os.listdir(two), ['docs'])


@test
def build_errors(box):
    """what can't be built ends with one line that names the Containerfile's line, and leaves no container layer"""
    box.base()
    for part, text in (('line 2: RUN false: the command ended with status 1', 'FROM base:1\nRUN false'),
                       ("line 2: 'FOO bar' is not", 'FROM base:1\nFOO bar'), ('before the first FROM', 'RUN x'),
                       ("'../../etc/shadow' isn't in the context", 'FROM base:1\nCOPY ../../etc/shadow /x'),
                       ('ONBUILD is not supported', 'FROM base:1\nONBUILD RUN x'), ('has no end', 'FROM base:1\nRUN <<EOF\nx'),
                       ('ADD of a URL', 'FROM base:1\nADD http://x.invalid/y /y'), ("no user 'nobody'", 'FROM base:1\nUSER nobody\nRUN id'),
                       ('duration', 'FROM base:1\nHEALTHCHECK --interval=x CMD y'), ('octal', 'FROM base:1\nCOPY --chmod=9 a.txt /'),
                       ("expected FROM", 'FROM base:1 AS'), ('JSON array', 'FROM base:1\nSHELL x')):
        ctx = context(box, text)
        r = box.refused(part, 'build', '-t', 'e:1', ctx)
        check('error' in r.err, r.err)
    equal(box.image('layer', 'list').out, '', 'container layers')
    box.refused('--file', 'build', '-t', 'e:1', box.path('store', 'tmp'))
