import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.jetbrains.kotlin.cli.jvm.K2JVMCompiler;

/**
 * Runs the Kotlin compiler several times in one process, because its first run costs most of the time:
 * CLASSPATH, then pairs of SOURCES and INTO. Each compilation sees what the first one made; what it says goes
 * into INTO/messages.txt and its exit code (0: fine) onto a line of standard output.
 */
public class Compile {
    public static void main(String[] arguments) throws Exception {
        for (int i = 1; i < arguments.length; i += 2) {
            Path into = Files.createDirectories(Path.of(arguments[i + 1]));
            String seen = arguments[0] + (i == 1 ? "" : java.io.File.pathSeparator + arguments[2]);
            List<String> command = new ArrayList<>(List.of(
                "-no-stdlib", "-no-reflect", "-Werror", "-jvm-target", "17", "-cp", seen, "-d", into.toString()));
            try (Stream<Path> sources = Files.walk(Path.of(arguments[i]))) {
                sources.filter(p -> p.toString().endsWith(".kt")).sorted().forEach(p -> command.add(p.toString()));
            }
            ByteArrayOutputStream said = new ByteArrayOutputStream();
            PrintStream stream = new PrintStream(said, true, StandardCharsets.UTF_8);
            int code = new K2JVMCompiler().exec(stream, command.toArray(new String[0])).getCode();
            Files.write(into.resolve("messages.txt"), said.toByteArray());
            System.out.println(code);
        }
    }
}
