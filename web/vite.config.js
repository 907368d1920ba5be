import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import preact from "@preact/preset-vite";
import { defineConfig } from "vite";

/** Says what was built of which sources: a test finds out when somebody forgot to build. */
function sourcesMark() {
  return {
    name: "sources-mark",
    generateBundle() {
      const hash = createHash("sha256");
      const names = readdirSync("src").sort().map((name) => `src/${name}`);
      for (const name of [...names, "index.html"]) hash.update(`${name}\0`).update(readFileSync(name)).update("\0");
      this.emitFile({ type: "asset", fileName: "sources.txt", source: `${hash.digest("hex")}\n` });
    },
  };
}

// The result is committed: users of the wheel need neither node nor a network.
export default defineConfig({
  plugins: [preact({ devToolsEnabled: false }), sourcesMark()],
  base: "./",
  build: {
    outDir: "../agentsched/dashboard/assets",
    emptyOutDir: true,
    assetsDir: ".",
    target: "es2022",
    modulePreload: { polyfill: false },
    cssCodeSplit: false,
    rollupOptions: {
      output: {
        entryFileNames: "dashboard.js",
        chunkFileNames: "[name].js",
        assetFileNames: "dashboard.[ext]",
      },
    },
  },
});
