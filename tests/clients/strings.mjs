// Usage: node strings.mjs MODULES CLIENT STRING...
// Connects a client as each string says; they are those of man/zenith-clients.7. Prints for each the branch that it reached, and
// what the session says that it is; or the SQLSTATE of its error.
import { createRequire } from "node:module";
const [modules, client, ...strings] = process.argv.slice(2);
const require = createRequire(modules + "/");
const SQL = "select name || ' ' || current_setting('zenith.branch') as told from whoami";

const clients = {
  "node-postgres": async (string) => {
    const { Client } = require("pg");
    const connection = new Client({ connectionString: string });
    await connection.connect();
    const answer = await connection.query(SQL);
    await connection.end();
    return answer.rows[0].told;
  },
  "Knex": async (string) => {
    const silent = { warn() {}, error() {} };
    const knex = require("knex")({ client: "pg", connection: string, log: silent });
    const answer = await knex.raw(SQL).finally(() => knex.destroy());
    return answer.rows[0].told;
  },
  "Sequelize": async (string) => {
    const { Sequelize } = require("sequelize");
    const sequelize = new Sequelize(string, { logging: false });
    const [rows] = await sequelize.query(SQL).finally(() => sequelize.close());
    return rows[0].told;
  },
  "TypeORM": async (string) => {
    const { DataSource } = require("typeorm");
    const source = await new DataSource({ type: "postgres", url: string }).initialize();
    const rows = await source.query(SQL).finally(() => source.destroy());
    return rows[0].told;
  },
  "postgres.js": async (string) => {
    const sql = require("postgres")(string);
    const [row] = await sql.unsafe(SQL);
    await sql.end();
    return row.told;
  },
};
for (const string of strings) {
  try {
    console.log(await clients[client](string));
  } catch (error) {
    // Sequelize wraps what node-postgres says.
    const code = error.code ?? error.parent?.code;
    if (!code) { throw error; }
    console.log(code);
  }
}
