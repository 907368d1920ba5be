async (ms) => {
  const scroller = document.querySelector('.scroller'), times = [];
  let last = performance.now(), down = 1, made = 0;
  const watch = new MutationObserver((changes) => {
    for (const change of changes) made += change.addedNodes.length;
  });
  watch.observe(document.querySelector('.rows'), { childList: true, subtree: true });
  const end = last + ms;
  while (performance.now() < end) {
    await new Promise(requestAnimationFrame);
    const at = performance.now();
    times.push(at - last);
    last = at;
    scroller.scrollTop += 60 * down;
    if (scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 1 || scroller.scrollTop <= 0) down = -down;
  }
  watch.disconnect();
  times.sort((a, b) => a - b);
  const at = (p) => times[Math.min(times.length - 1, Math.floor(p * times.length))];
  return { count: times.length, p50: at(0.5), p95: at(0.95), max: at(1), made, rows: document.querySelectorAll('.rows .row').length };
}
