// Usage: node client.mjs MODULES HOST PORT BRANCH
import { createRequire } from "node:module";
const [modules, host, port, branch] = process.argv.slice(2);
const { default: pg } = { default: createRequire(modules + "/")("pg") };

const connect = async (options) => {
  const client = new pg.Client({ host, port: Number(port), user: "postgres", database: "postgres", ...options });
  await client.connect();
  return client;
};
const check = (what, found, expected) => {
  if (found !== expected) { throw new Error(`${what}: ${found} rather than ${expected}`); }
};

for (const options of [{ options: `-c zenith.branch=${branch}` }, { database: `postgres@${branch}` }, { user: `postgres@${branch}` },
  { options: `-c branch=${branch}`, ssl: { rejectUnauthorized: false } }]) {
  const client = await connect(options);
  check("branch", (await client.query("select name from whoami")).rows[0].name, branch);
  await client.query("begin");
  await client.query("create temp table t as select generate_series(1, 1000) i");
  await client.query("commit");
  check("rows", (await client.query("select count(*)::int n from t")).rows[0].n, 1000);
  const pid = (await client.query("select pg_backend_pid() pid")).rows[0].pid;
  const other = await connect(options);
  const asleep = client.query("select pg_sleep(30)").then(() => "slept", (error) => error.code);
  await new Promise((resolve) => setTimeout(resolve, 300));
  await other.query("select pg_cancel_backend($1)", [pid]);
  check("cancel", await asleep, "57014");
  await other.end();
  await client.end();
}
console.log("ok");
