() => [...document.querySelectorAll('button, a, input, select, textarea, svg[role=img]')]
  .filter((e) => e.checkVisibility() && !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 80))
