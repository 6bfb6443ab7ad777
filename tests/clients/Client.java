// Usage: java -cp JDBC Client.java HOST PORT BRANCH
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;
import org.postgresql.PGConnection;

public class Client {
    static void check(String what, Object found, Object expected) {
        if (!expected.equals(found)) throw new RuntimeException(what + ": " + found + " rather than " + expected);
    }

    static String one(Statement statement, String sql) throws SQLException {
        var rows = statement.executeQuery(sql);
        rows.next();
        return rows.getString(1);
    }

    static void run(String url, Properties properties, String branch) throws Exception {
        try (Connection connection = DriverManager.getConnection(url, properties); Statement statement = connection.createStatement()) {
            check("branch", one(statement, "select name from whoami"), branch);
            connection.setAutoCommit(false);
            statement.execute("create temp table t (i int)");
            var copy = connection.unwrap(PGConnection.class).getCopyAPI();
            var lines = new StringBuilder();
            for (int i = 0; i < 20000; i++) lines.append(i).append('\n');
            copy.copyIn("copy t from stdin", new StringReader(lines.toString()));
            connection.commit();
            var out = new StringWriter();
            copy.copyOut("copy t to stdout", out);
            check("copy", out.toString().lines().count(), 20000L);
            var timer = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    statement.cancel();
                } catch (Exception error) {
                    error.printStackTrace();
                }
            });
            timer.start();
            try {
                statement.execute("select pg_sleep(30)");
                throw new RuntimeException("was not cancelled");
            } catch (SQLException error) {
                check("cancel", error.getSQLState(), "57014");
            }
        }
    }

    public static void main(String[] words) throws Exception {
        String server = "jdbc:postgresql://" + words[0] + ":" + words[1] + "/", branch = words[2];
        for (String mode : new String[] {"disable", "require"}) {
            var properties = new Properties();
            properties.setProperty("user", "postgres");
            properties.setProperty("sslmode", mode);
            properties.setProperty("options", "-c zenith.branch=" + branch);
            run(server + "postgres", properties, branch);
            properties.remove("options");
            run(server + "postgres@" + branch, properties, branch);
        }
        System.out.println("ok");
    }
}
