// Usage: node page.mjs MODULES URL FOLDER
// Opens the page server's page in chromium, on a narrow and a wide window, and prints what a reader sees of it as JSON; puts
// pictures of it into FOLDER.
import { createRequire } from "node:module";
const [modules, url, folder] = process.argv.slice(2);
const { chromium } = createRequire(modules + "/")("playwright-core");

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const seen = {};
for (const width of [420, 1280]) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, permissions: ["clipboard-read", "clipboard-write"] });
  const page = await context.newPage();
  await page.goto(url);
  await page.waitForSelector("#names li");
  await page.screenshot({ path: `${folder}/page-${width}.png`, fullPage: true });
  seen[width] = await page.evaluate(() => {
    const box = (one) => one.getBoundingClientRect();
    const all = (selector) => [...document.querySelectorAll(selector)];
    const graph = box(document.querySelector("#graph svg"));
    const rings = all("#graph g.node:not(.tag)").map((one) => [one.getAttribute("aria-label"), box(one.querySelector("circle"))]);
    const tags = all("#graph g.tag").map((one) => [one.querySelector("text").textContent, box(one.querySelector("text")), box(one.querySelectorAll("path")[1])]);
    const lines = (one) => { const range = document.createRange(); range.selectNodeContents(one); return range.getClientRects().length; };
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    return {
      text: document.body.innerText,
      problem: document.querySelector("#problem").textContent,
      // Names beside the graph that are in the window.
      names: all("#names .name").filter((one) => box(one).width > 20 && box(one).left >= 0 && box(one).right <= innerWidth).map((one) => one.firstChild.textContent),
      rings: rings.map(([label]) => label),
      ringsAt: rings.map(([, at]) => Math.round(at.top)),
      tags: tags.map(([name]) => name),
      // Labels that stick out of the drawing or lie upon each other; marks of tags that hide a ring.
      clipped: tags.filter(([, at]) => at.top < graph.top || at.left < graph.left || at.right > graph.right).map(([name]) => name),
      upon: tags.filter(([, at], number) => tags.slice(number + 1).some(([, other]) => meet(at, other))).map(([name]) => name),
      hidden: rings.filter(([, at]) => tags.some(([, , mark]) => meet(at, mark))).map(([label]) => label),
      // Cells that stick out of the window.
      cut: all("td, th").filter((one) => box(one).right > innerWidth).map((one) => one.innerText),
      wide: document.documentElement.scrollWidth > innerWidth,
      // LSNs that take more than one line.
      broken: all("#branches small, #tags .mono").filter((one) => /^[0-9A-F]+\/[0-9A-F]+$/.test(one.textContent) && lines(one) > 1).length,
      urls: all("#branches button").map((one) => one.dataset.url),
    };
  });
  await page.locator("#branches button").last().click();
  seen[width].copied = await page.evaluate(() => navigator.clipboard.readText());
  seen[width].button = await page.locator("#branches button").last().textContent();
  await context.close();
}
await browser.close();
console.log(JSON.stringify(seen));
