import preact from "@preact/preset-vite";
import { defineConfig } from "vite";

// The result is committed: users of the wheel need neither node nor a network.
export default defineConfig({
  plugins: [preact({ devToolsEnabled: false })],
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
