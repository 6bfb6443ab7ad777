// Usage: java -cp JDBC Strings.java STRING...
// Connects as each string says; they are those of man/zenith-clients.7. Prints for each the branch that it reached, and what the
// session says that it is; or the SQLSTATE of its error.
import java.sql.DriverManager;
import java.sql.SQLException;

public class Strings {
    static String told(String string) throws SQLException {
        String sql = "select name || ' ' || current_setting('zenith.branch') from whoami";
        try (var connection = DriverManager.getConnection(string); var statement = connection.createStatement()) {
            var rows = statement.executeQuery(sql);
            rows.next();
            return rows.getString(1);
        } catch (SQLException error) {
            if (error.getSQLState() == null) throw error;
            return error.getSQLState();
        }
    }

    public static void main(String[] strings) throws SQLException {
        for (String string : strings) System.out.println(told(string));
    }
}
