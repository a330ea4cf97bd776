"use strict";
/* Pointing at a candidate lights it up in every chart and table of its device. */
for (const device of document.querySelectorAll("[data-device]")) {
  const peers = (c) => document.querySelectorAll(`[data-device="${device.dataset.device}"] [data-c="${c}"]`);
  const light = (on) => (event) => {
    const at = event.target.closest("[data-c]");
    if (at) for (const peer of peers(at.dataset.c)) peer.classList.toggle("lit", on);
  };
  device.addEventListener("mouseover", light(true));
  device.addEventListener("mouseout", light(false));
}
/* A field above long tables keeps the rows that hold what is typed. */
for (const field of document.querySelectorAll(".filter")) {
  field.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(field.dataset.table).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
addEventListener("beforeprint", () => {
  for (const block of document.querySelectorAll("details")) block.open = true;
});
