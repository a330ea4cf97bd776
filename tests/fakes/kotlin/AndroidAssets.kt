package android.content.res

import java.io.File
import java.io.InputStream

class AssetManager(private val folder: File) {
    fun open(path: String): InputStream = File(folder, path).inputStream()

    /** The names in a folder; none for a file and for what is not there, as Android does it. */
    fun list(path: String): Array<String>? = File(folder, path).list() ?: emptyArray()
}
