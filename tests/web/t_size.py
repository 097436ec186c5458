"""How much comes over the wire, and how much is in the document with a thousand instances. How fast: bench/web."""
from browser import check

CONSOLES = 20


def size(world):
    d = world.daemon
    for i in range(1000):
        d.call('POST', '/v1/instances', {'name': 'i%04d' % i, 'kernel': d.kernel(), 'labels': {'group': 'g%d' % (i % 7)}})
        if i % 100 == 99:
            d.call('POST', '/v1/instances?wait=60', {'name': 'w%d' % i, 'kernel': d.kernel()})
    b = world.browser()
    sent = b.js('return performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation")).filter((e) => !e.name.includes("/v1/"))'
                '.reduce((n, e) => n + e.encodedBodySize, 0)')
    check('the first load is under 300 KB (%d bytes)' % sent, 5000 < sent < 300 * 1024)
    check('a thousand instances are listed', b.sees('1010 instances'))
    check('few of their rows are in the document', b.js('return document.querySelectorAll("tbody tr").length') < 80)
    b.js('const s = document.querySelector(".scroller"); s.scrollTop = s.scrollHeight')
    check('the last one is at the end', b.sees('w999'))
    added = b.driver.execute_async_script('''const done = arguments[arguments.length - 1], s = document.querySelector(".scroller"); let added = 0;
        new MutationObserver((all) => { for (const m of all) added += m.addedNodes.length; }).observe(document.querySelector("tbody"), {childList: true});
        s.scrollTop = 10000; const until = performance.now() + 20000, was = document.querySelector("td.col-name").innerText;
        const look = () => document.querySelector("td.col-name").innerText !== was || performance.now() > until ? done(added) : setTimeout(look, 20);
        setTimeout(look, 20);''')
    check('scrolling far away fills the rows that are there', 0 <= added <= 12, added)  # at the end of the list there were fewer
    check('each row stands where its number says', b.js('''return [...document.querySelectorAll("tbody tr:not(.spacer)")].every((tr, i, all) =>
        i === 0 || Number(tr.getAttribute("aria-rowindex")) === Number(all[i - 1].getAttribute("aria-rowindex")) + 1)'''))
    b.css('#filter').clear()
    b.css('#filter').send_keys('i0123')
    check('the filter finds one of them', b.sees('1 of 1010 instances'))
    for i in range(CONSOLES):
        d.call('POST', '/v1/instances/i%04d/start?wait=60' % i)
    echoed = b.driver.execute_async_script('''const [count, done] = arguments;
        import("/api.js").then(({at, socket}) => Promise.all(Array.from({length: count}, (_, i) => new Promise((echoed) => {
          const ws = socket(at("instances", "i" + String(i).padStart(4, "0"), "/console")), text = "typed into " + i + ";"; let got = "";
          ws.binaryType = "arraybuffer"; ws.onopen = () => ws.send(new TextEncoder().encode(text));
          ws.onmessage = (m) => { got += new TextDecoder().decode(m.data); if (got.includes(text)) echoed(1); };
          setTimeout(() => echoed(0), 50000);
        })))).then((all) => done(all.reduce((a, b) => a + b)), (e) => done(String(e)));''', CONSOLES)
    check('%d consoles are attached at once, each with its own bytes' % CONSOLES, echoed == CONSOLES, echoed)
    check('the page is still live', b.until('document.querySelector(".live.up")'))
