// Search in the replies: every word typed has to be in the prompt or in one of its replies.
(() => {
  const part = document.getElementById("replies");
  const items = [...part.querySelectorAll("details.prompt")];
  if (!items.length) return;
  const box = document.getElementById("find"), count = document.getElementById("found");
  const texts = items.map((item) => item.textContent.toLowerCase());
  const first = items.map((item) => item.open);
  const show = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    items.forEach((item, i) => {
      const hit = words.every((word) => texts[i].includes(word));
      item.hidden = !hit;
      item.open = words.length ? hit && n < 20 : first[i];
      n += hit;
    });
    count.textContent = words.length ? `${n} of ${items.length} prompts` : `${items.length} prompts`;
  };
  part.querySelector(".tools").hidden = false;
  box.addEventListener("input", show);
  document.getElementById("all").addEventListener("click", () => {
    const open = !items.every((item) => item.hidden || item.open);
    items.forEach((item) => { item.open = open; });
  });
  show();
})();
